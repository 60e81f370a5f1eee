package main

import (
	"fmt"
	"reflect"

	"github.com/vmware/govmomi/vim25/types"
)

func localized(text string) []types.LocalizableMessage {
	return []types.LocalizableMessage{{Key: "msg.lab", Message: text}}
}

// fileLocked is what an operation on files meets when another one holds the file open.
func fileLocked(file string) types.BaseMethodFault {
	f := &types.FileLocked{}
	f.File = file
	f.FaultMessage = localized(fmt.Sprintf("Unable to access file %s since it is locked", file))
	return f
}

// message is one entry of a fault's chain, with numbered arguments as vSphere has them.
func message(key, text string, args ...string) types.LocalizableMessage {
	m := types.LocalizableMessage{Key: key, Message: text}
	for i, arg := range args {
		m.Arg = append(m.Arg, types.KeyAnyValue{Key: fmt.Sprint(i + 1), Value: arg})
	}
	return m
}

func genericConfig(reason string) types.BaseMethodFault {
	f := &types.GenericVmConfigFault{Reason: reason}
	f.FaultMessage = localized(reason)
	return f
}

func fileFault(file, text string) types.BaseMethodFault {
	f := &types.FileFault{File: file}
	f.FaultMessage = localized(text)
	return f
}

func systemError(err error) types.BaseMethodFault {
	f := &types.SystemError{Reason: err.Error()}
	f.FaultMessage = localized(err.Error())
	return f
}

func invalidArgument(property string) types.BaseMethodFault {
	return &types.InvalidArgument{InvalidProperty: property}
}

// faultText is a sentence for the localized message of a fault.
func faultText(fault types.BaseMethodFault) string {
	if m := fault.GetMethodFault(); m != nil {
		for _, text := range m.FaultMessage {
			if text.Message != "" {
				return text.Message
			}
		}
	}
	switch f := fault.(type) {
	case *types.CustomizationPending:
		return "A customization is pending already."
	case *types.InvalidArgument:
		return "A specified parameter was not correct: " + f.InvalidProperty
	case *types.NoPermission:
		return "Permission to perform this operation was denied. Missing privilege: " + f.PrivilegeId
	case *types.InvalidPowerState:
		return fmt.Sprintf("The attempted operation cannot be performed in the current state (%s).", f.ExistingState)
	case *types.TaskInProgress:
		return "The operation is not allowed: another task is already in progress."
	case *types.MethodDisabled:
		return "The method is disabled."
	case *types.ToolsUnavailable:
		return "VMware Tools are not running in the guest operating system."
	}
	return reflect.TypeOf(fault).Elem().Name()
}

// faultByName makes an empty fault of a type of the API, its required references filled with the object at hand.
func faultByName(name string, this types.ManagedObjectReference) types.BaseMethodFault {
	kind, ok := types.TypeFunc()(name)
	if !ok || kind.Kind() != reflect.Struct {
		return nil
	}
	v := reflect.New(kind)
	fault, ok := v.Interface().(types.BaseMethodFault)
	if !ok {
		return nil
	}
	for i := 0; i < v.Elem().NumField(); i++ {
		field := v.Elem().Field(i)
		if ref, ok := field.Addr().Interface().(*types.ManagedObjectReference); ok {
			*ref = this
			if kind.Field(i).Name == "Task" {
				*ref = types.ManagedObjectReference{Type: "Task", Value: "task-0"}
			}
		}
	}
	return fault
}

func faultAsError(fault types.BaseMethodFault) error {
	return fmt.Errorf("%T: %s", fault, faultText(fault))
}
