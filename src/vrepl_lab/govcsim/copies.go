package main

import (
	"bytes"
	"os"

	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// deepCopy copies by way of XML, as everything in the API's type tree allows.
func deepCopy(src, dst any) {
	b, err := xml.Marshal(src)
	if err != nil {
		panic(err)
	}
	dec := xml.NewDecoder(bytes.NewReader(b))
	dec.TypeFunc = types.TypeFunc()
	if err := dec.Decode(dst); err != nil {
		panic(err)
	}
}

func copyDevices(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	var dst types.ArrayOfVirtualDevice
	deepCopy(types.ArrayOfVirtualDevice{VirtualDevice: devices}, &dst)
	return dst.VirtualDevice
}

func copyConfig(src *types.VirtualMachineConfigInfo) types.VirtualMachineConfigInfo {
	var dst types.VirtualMachineConfigInfo
	deepCopy(*src, &dst)
	return dst
}

// moveFolder renames a folder whose name must be free at the other place.
func moveFolder(from, to string) error {
	if exists(to) {
		return &os.PathError{Op: "move", Path: to, Err: os.ErrExist}
	}
	return os.Rename(from, to)
}
