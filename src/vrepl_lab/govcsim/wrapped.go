package main

import (
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// Keys of vSphere's messages. Sources: msg.fileio.lock open-vm-tools lib/file/fileIO.c and what vmware/vic meets for a
// locked disk; msg.snapshot.vigor.*.error with the cause as their argument vmware-tanzu/vm-operator; the rest Broadcom KB
// articles on failed snapshots. That consolidation has a wrapper of its own is a guess.
const (
	keyLock        = "msg.fileio.lock"
	keyNoBackEnd   = "msg.disk.noBackEnd"
	keyQuiescing   = "msg.snapshot.error-QUIESCINGERROR"
	textLock       = "Failed to lock the file"
	textQuiescing  = "An error occurred while quiescing the virtual machine."
	textNoBackEnd  = "Cannot open the disk '%s' or one of the snapshot disks it depends on."
	wrapperTake    = "msg.snapshot.vigor.take.error"
	wrapperRevert  = "msg.snapshot.vigor.revert.error"
	wrapperRemove  = "msg.snapshot.vigor.delete.error"
	wrapperCompact = "msg.snapshot.vigor.consolidate.error"
)

// wrappers are the methods whose faults ESXi wraps, with the key of the wrapping message and what it says was tried.
var wrappers = map[string][2]string{
	"CreateSnapshot_Task":          {wrapperTake, "taking a snapshot"},
	"CreateSnapshotEx_Task":        {wrapperTake, "taking a snapshot"},
	"RemoveSnapshot_Task":          {wrapperRemove, "deleting a snapshot"},
	"RemoveAllSnapshots_Task":      {wrapperRemove, "deleting a snapshot"},
	"RevertToSnapshot_Task":        {wrapperRevert, "reverting to a snapshot"},
	"RevertToCurrentSnapshot_Task": {wrapperRevert, "reverting to a snapshot"},
	"ConsolidateVMDisks_Task":      {wrapperCompact, "consolidating disks"},
	"PowerOnVM_Task":               {keyNoBackEnd, ""},
	"hot-add":                      {keyNoBackEnd, ""}, // what ReconfigVM_Task meets that adds a disk to a running VM
}

// wrapped is a fault as ESXi gives it: the type is a general one, and the cause stands in the messages' keys.
func (l *Lab) wrapped(method string, fault types.BaseMethodFault) types.BaseMethodFault {
	wrapper, ok := wrappers[method]
	if !ok || fault == nil || !l.config().WrappedFaults {
		return fault
	}
	key, text, file := "", "", ""
	switch f := fault.(type) {
	case *types.FileLocked:
		key, text, file = keyLock, textLock, f.File
	case *types.ApplicationQuiesceFault:
		key, text = keyQuiescing, textQuiescing
	default:
		return fault
	}
	outer := types.LocalizableMessage{Key: wrapper[0], Arg: []types.KeyAnyValue{{Key: "1", Value: key}}}
	outer.Message = "An error occurred while " + wrapper[1] + ": " + text
	if wrapper[0] == keyNoBackEnd {
		outer.Arg = []types.KeyAnyValue{{Key: "1", Value: file}}
		outer.Message = strings.Replace(textNoBackEnd, "%s", file, 1)
	}
	general := &types.GenericVmConfigFault{Reason: outer.Message}
	general.FaultMessage = []types.LocalizableMessage{outer, {Key: key, Message: text}}
	return general
}
