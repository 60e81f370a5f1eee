package main

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// install puts the lab's objects beside govcsim's and sends calls to them. An object that Handler returns is ignored
// once the caller has a session, so Handler rewrites the call's target instead.
func (l *Lab) install(registry *simulator.Registry) {
	shadows := map[string]mo.Reference{
		"VirtualMachine":         &vmMethods{lab: l},
		"VirtualMachineSnapshot": &snapshotMethods{lab: l},
		"Folder":                 &folderMethods{lab: l},
		"Datastore":              &datastoreMethods{lab: l},
		"FileManager":            &datastoreFileMethods{lab: l},
		"VirtualDiskManager":     &diskMethods{lab: l},
		"HostDatastoreBrowser":   &browserMethods{lab: l},
		"AuthorizationManager":   &authorizationMethods{lab: l},
		"ServiceInstance":        &instanceMethods{lab: l},
		"EnvironmentBrowser":     &environmentMethods{lab: l},
		"HostNetworkSystem":      &networkMethods{lab: l},
		"Datacenter":             &datacenterMethods{lab: l},
		"GuestProcessManager":    &processMethods{lab: l},
		"GuestFileManager":       &fileMethods{lab: l},
		"GuestAuthManager":       &authMethods{lab: l},
		"ListView":               &listViewMethods{},
	}
	for kind, obj := range shadows {
		self := types.ManagedObjectReference{Type: "Lab" + kind, Value: "lab-" + strings.ToLower(kind)}
		reflect.ValueOf(obj).Elem().FieldByName("Self").Set(reflect.ValueOf(self))
		registry.Put(obj)
	}
	registry.AddHandler(&newcomers{watched: &l.watched})
	l.installNFCService(registry)
	registry.Handler = func(ctx *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
		if ctx.Session == nil {
			return nil, nil
		}
		if l.standalone && vCenterOnly[method.Name] {
			return nil, &types.NotSupported{}
		}
		if fault := l.permitted(method); fault != nil {
			return nil, fault
		}
		if fault := l.asked(method); fault != nil {
			return nil, fault
		}
		if strings.HasPrefix(method.Name, "Retrieve") || strings.HasPrefix(method.Name, "WaitForUpdates") {
			l.refreshSpace(false)
		}
		if req, ok := method.Body.(*types.WaitForUpdatesEx); ok {
			l.watchViewsOnly(ctx, registry, req)
		}
		obj := registry.Get(method.This)
		if vm, ok := obj.(*simulator.VirtualMachine); ok {
			var disabled bool
			l.context().WithLock(vm, func() { disabled = slices.Contains(vm.DisabledMethod, method.Name) })
			if disabled {
				return nil, &types.MethodDisabled{Source: l.preparedBy(vm.Self.Value)}
			}
		}
		name := method.Name
		if cut, ok := strings.CutSuffix(name, "_Task"); ok {
			name = cut + "Task"
		}
		shadow := shadows[method.This.Type]
		if shadow == nil || !reflect.ValueOf(shadow).MethodByName(name).IsValid() || name == "Lock" || name == "Unlock" {
			return nil, nil
		}
		if obj == nil && ctx.Session.Get(method.This) == nil {
			return nil, &types.ManagedObjectNotFound{Obj: method.This}
		}
		method.This = shadow.Reference()
		return nil, nil
	}
}

// newcomers gives every VM, those made later too, the runtime fields that pyVmomi requires and govcsim leaves empty; and
// it tells filters the leaves under what is assigned.
type newcomers struct {
	mo.ExtensibleManagedObject
	watched *watched
}

// Reference names the handler in the registry.
func (*newcomers) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "LabNewcomers", Value: "lab-newcomers"}
}

// PutObject completes a VM, or a cluster, as it enters the registry.
func (*newcomers) PutObject(_ *simulator.Context, obj mo.Reference) {
	if cluster, ok := obj.(*simulator.ClusterComputeResource); ok {
		if config, ok := cluster.ConfigurationEx.(*types.ClusterConfigInfoEx); ok && config.VsanConfigInfo == nil {
			none := types.NewBool(false)
			config.VsanConfigInfo = &types.VsanClusterConfigInfo{
				Enabled: none, DefaultConfig: &types.VsanClusterConfigInfoHostDefaultInfo{AutoClaimStorage: none},
			}
		}
	}
	vm, ok := obj.(*simulator.VirtualMachine)
	if !ok {
		return
	}
	for _, r := range []*types.VirtualMachineRuntimeInfo{&vm.Runtime, &vm.Summary.Runtime} {
		r.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
		r.RecordReplayState = types.VirtualMachineRecordReplayStateInactive
	}
	if vm.Config != nil {
		if vm.Config.Tools == nil {
			vm.Config.Tools = &types.ToolsConfigInfo{}
		}
		if vm.Config.Tools.LastInstallInfo == nil { // clients read it without asking whether it is there
			vm.Config.Tools.LastInstallInfo = &types.ToolsConfigInfoToolsLastInstallInfo{}
		}
	}
}

// UpdateObject tells the leaves.
func (n *newcomers) UpdateObject(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	n.watched.tellLeaves(ctx, obj, changes)
}

// RemoveObject does nothing.
func (*newcomers) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}

// instanceMethods are those of ServiceInstance.
type instanceMethods struct {
	shadow
	lab *Lab
}

// CurrentTime is the clock of this vCenter, off by the setting clock_offset_s.
func (m *instanceMethods) CurrentTime(ctx *simulator.Context, req *types.CurrentTime) soap.HasFault {
	offset := time.Duration(m.lab.config().ClockOffsetS * float64(time.Second))
	return &methods.CurrentTimeBody{Res: &types.CurrentTimeResponse{Returnval: time.Now().UTC().Add(offset)}}
}

// authorizationMethods answer what the setting missing_privileges says.
type authorizationMethods struct {
	shadow
	lab *Lab
}

func (m *authorizationMethods) entityPrivileges(
	entities []types.ManagedObjectReference, ids []string,
) []types.EntityPrivilege {
	missing := m.lab.config().MissingPrivileges
	var all []types.EntityPrivilege
	for _, e := range entities {
		p := types.EntityPrivilege{Entity: e}
		for _, id := range ids {
			p.PrivAvailability = append(p.PrivAvailability,
				types.PrivilegeAvailability{PrivId: id, IsGranted: !slices.Contains(missing, id)})
		}
		all = append(all, p)
	}
	return all
}

// HasPrivilegeOnEntities answers for a session.
func (m *authorizationMethods) HasPrivilegeOnEntities(
	ctx *simulator.Context, req *types.HasPrivilegeOnEntities,
) soap.HasFault {
	return &methods.HasPrivilegeOnEntitiesBody{Res: &types.HasPrivilegeOnEntitiesResponse{
		Returnval: m.entityPrivileges(req.Entity, req.PrivId)}}
}

// HasUserPrivilegeOnEntities answers for a user.
func (m *authorizationMethods) HasUserPrivilegeOnEntities(
	ctx *simulator.Context, req *types.HasUserPrivilegeOnEntities,
) soap.HasFault {
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: &types.HasUserPrivilegeOnEntitiesResponse{
		Returnval: m.entityPrivileges(req.Entities, req.PrivId)}}
}

// HasPrivilegeOnEntity answers for one object.
func (m *authorizationMethods) HasPrivilegeOnEntity(
	ctx *simulator.Context, req *types.HasPrivilegeOnEntity,
) soap.HasFault {
	missing := m.lab.config().MissingPrivileges
	res := &types.HasPrivilegeOnEntityResponse{}
	for _, id := range req.PrivId {
		res.Returnval = append(res.Returnval, !slices.Contains(missing, id))
	}
	return &methods.HasPrivilegeOnEntityBody{Res: res}
}

// FetchUserPrivilegeOnEntities lists what a user may do.
func (m *authorizationMethods) FetchUserPrivilegeOnEntities(
	ctx *simulator.Context, req *types.FetchUserPrivilegeOnEntities,
) soap.HasFault {
	own := m.lab.context()
	content := own.Map.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content
	real := own.Map.Get(*content.AuthorizationManager).(*simulator.AuthorizationManager)
	body := real.FetchUserPrivilegeOnEntities(req).(*methods.FetchUserPrivilegeOnEntitiesBody)
	missing := m.lab.config().MissingPrivileges
	for i := range body.Res.Returnval {
		body.Res.Returnval[i].Privileges = slices.DeleteFunc(
			slices.Clone(body.Res.Returnval[i].Privileges), func(id string) bool { return slices.Contains(missing, id) })
	}
	return body
}

// privilegeOf names the privilege that a method needs. Reconfiguration needs more than one: see reconfigPrivileges.
var privilegeOf = map[string]string{
	"CreateSnapshot_Task":          "VirtualMachine.State.CreateSnapshot",
	"CreateSnapshotEx_Task":        "VirtualMachine.State.CreateSnapshot",
	"RemoveSnapshot_Task":          "VirtualMachine.State.RemoveSnapshot",
	"RemoveAllSnapshots_Task":      "VirtualMachine.State.RemoveSnapshot",
	"ConsolidateVMDisks_Task":      "VirtualMachine.State.RemoveSnapshot",
	"RevertToSnapshot_Task":        "VirtualMachine.State.RevertToSnapshot",
	"RevertToCurrentSnapshot_Task": "VirtualMachine.State.RevertToSnapshot",
	"RenameSnapshot":               "VirtualMachine.State.RenameSnapshot",
	"QueryChangedDiskAreas":        "VirtualMachine.Config.ChangeTracking",
	"CreateVM_Task":                "VirtualMachine.Inventory.Create",
	"RegisterVM_Task":              "VirtualMachine.Inventory.Register",
	"UnregisterVM":                 "VirtualMachine.Inventory.Unregister",
	"Destroy_Task":                 "VirtualMachine.Inventory.Delete",
	"PowerOnVM_Task":               "VirtualMachine.Interact.PowerOn",
	"PowerOffVM_Task":              "VirtualMachine.Interact.PowerOff",
	"ShutdownGuest":                "VirtualMachine.Interact.PowerOff",
	"ResetVM_Task":                 "VirtualMachine.Interact.Reset",
	"CloneVM_Task":                 "VirtualMachine.Provisioning.Clone",
	"RelocateVM_Task":              "Resource.ColdMigrate",
	"Rename_Task":                  "VirtualMachine.Config.Rename",
	"AddCustomFieldDef":            "Global.ManageCustomFields",
	"SetField":                     "Global.SetCustomField",
	"AddVirtualSwitch":             "Host.Config.Network",
	"RemoveVirtualSwitch":          "Host.Config.Network",
	"AddPortGroup":                 "Host.Config.Network",
	"RemovePortGroup":              "Host.Config.Network",
	"CustomizeVM_Task":             "VirtualMachine.Provisioning.Customize",

	"StartProgramInGuest":           "VirtualMachine.GuestOperations.Execute",
	"TerminateProcessInGuest":       "VirtualMachine.GuestOperations.Execute",
	"ListProcessesInGuest":          "VirtualMachine.GuestOperations.Query",
	"InitiateFileTransferToGuest":   "VirtualMachine.GuestOperations.Modify",
	"InitiateFileTransferFromGuest": "VirtualMachine.GuestOperations.Query",
}

// permitted refuses a call whose privilege is missing.
func (l *Lab) permitted(method *simulator.Method) types.BaseMethodFault {
	missing := l.config().MissingPrivileges
	if len(missing) == 0 {
		return nil
	}
	need := []string{privilegeOf[method.Name]}
	switch req := method.Body.(type) {
	case *types.ReconfigVM_Task:
		need = reconfigPrivileges(&req.Spec)
	case *types.CreateVM_Task:
		need = append(need, "Resource.AssignVMToPool", "Datastore.AllocateSpace")
		need = append(need, reconfigPrivileges(&types.VirtualMachineConfigSpec{DeviceChange: req.Config.DeviceChange})...)
	}
	for _, id := range need {
		if id != "" && slices.Contains(missing, id) {
			this := method.This
			f := &types.NoPermission{Object: &this, PrivilegeId: id}
			f.FaultMessage = localized("Permission to perform this operation was denied. Missing privilege: " + id)
			return f
		}
	}
	return nil
}

func reconfigPrivileges(spec *types.VirtualMachineConfigSpec) []string {
	var need []string
	if spec.ChangeTrackingEnabled != nil {
		need = append(need, "VirtualMachine.Config.ChangeTracking")
	}
	if len(spec.ExtraConfig) > 0 {
		need = append(need, "VirtualMachine.Config.AdvancedConfig")
	}
	if spec.NumCPUs != 0 {
		need = append(need, "VirtualMachine.Config.CPUCount")
	}
	if spec.MemoryMB != 0 {
		need = append(need, "VirtualMachine.Config.Memory")
	}
	if spec.Name != "" {
		need = append(need, "VirtualMachine.Config.Rename")
	}
	for _, change := range spec.DeviceChange {
		c := change.GetVirtualDeviceConfigSpec()
		_, isDisk := c.Device.(*types.VirtualDisk)
		_, isNIC := c.Device.(types.BaseVirtualEthernetCard)
		switch {
		case isDisk && c.Operation == types.VirtualDeviceConfigSpecOperationAdd && c.FileOperation == "":
			need = append(need, "VirtualMachine.Config.AddExistingDisk")
		case isDisk && c.Operation == types.VirtualDeviceConfigSpecOperationAdd:
			need = append(need, "VirtualMachine.Config.AddNewDisk")
		case isDisk && c.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			need = append(need, "VirtualMachine.Config.RemoveDisk")
		case isDisk:
			need = append(need, "VirtualMachine.Config.DiskExtend")
		case isNIC:
			need = append(need, "Network.Assign", "VirtualMachine.Config.AddRemoveDevice")
		default:
			need = append(need, "VirtualMachine.Config.AddRemoveDevice")
		}
	}
	if len(need) == 0 {
		need = append(need, "VirtualMachine.Config.Settings")
	}
	return need
}
