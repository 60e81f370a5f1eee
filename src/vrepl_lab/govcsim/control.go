package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// VixError codes that the control port uses (docs/lab-internals.md section 4).
const (
	vixOK           = 0
	vixFail         = 1
	vixInvalidArg   = 3
	vixFileNotFound = 4
	vixBusy         = 5
	vixNotSupported = 6
	vixAccess       = 13
	vixLocked       = 15
	vixReadOnly     = 16
	vixLogin        = 3014
	vixRefused      = 14009
	vixNoConnection = 18000
)

// vixFault is a status other than 0.
type vixFault struct {
	code int
	text string
}

func fails(code int, format string, args ...any) *vixFault {
	return &vixFault{code, fmt.Sprintf(format, args...)}
}

func (l *Lab) serveControl(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go l.controlSession(newWire(conn))
	}
}

// controlSession is one client's connection to the vCenter's VDDK port. For hotadd and san it carries one handle.
func (l *Lab) controlSession(w *wire) {
	defer w.close()
	var held *handle
	connected := 0
	defer func() {
		l.mu.Lock()
		l.open -= connected
		l.mu.Unlock()
		if held != nil {
			l.linger(held)
		}
	}()
	for {
		msg, err := w.read()
		if err != nil {
			return
		}
		op := msg["op"]
		if op != "close" {
			if fault := l.authenticate(msg, op); fault != nil {
				w.status(fault.code, fault.text)
				continue
			}
		}
		switch op {
		case "connect":
			if fault := l.connect(msg); fault != nil {
				w.status(fault.code, fault.text)
				continue
			}
			connected++
			w.reply("status 0")
		case "open":
			if held != nil {
				w.status(vixInvalidArg, "this connection carries a handle already")
				continue
			}
			h, lines, fault := l.openDisk(msg)
			if fault != nil {
				log.Printf("open %s %q: %d %s", msg["moref"], msg["path"], fault.code, fault.text)
				w.status(fault.code, fault.text)
				continue
			}
			held = h
			w.reply(lines...)
		case "close":
			if held != nil {
				l.detachHotAdd(held)
				l.drop(held)
				held = nil
			}
			w.reply("status 0")
			return
		case "prepare", "endaccess":
			if fault := l.prepare(msg, op == "prepare"); fault != nil {
				w.status(fault.code, fault.text)
				continue
			}
			w.reply("status 0")
		case "cleanup":
			cleaned, left := l.cleanup(msg["proxy"])
			w.reply("status 0", fmt.Sprintf("cleaned %d", cleaned), fmt.Sprintf("remaining %d", left))
		default:
			w.status(vixInvalidArg, "unknown op")
		}
	}
}

// authenticate accepts the lab's user, or a session that is logged in; then the privileges that VDDK needs.
func (l *Lab) authenticate(msg map[string]string, op string) *vixFault {
	if session := msg["session"]; session != "" {
		if !l.loggedIn(session) {
			return fails(vixLogin, "the session is not logged in")
		}
	} else if msg["user"] != l.user || msg["password"] != l.password {
		return fails(vixLogin, "insufficient permission: wrong user name or password")
	}
	var need []string
	switch op {
	case "open":
		need = []string{"VirtualMachine.Provisioning.DiskRandomRead"}
		if msg["readonly"] != "1" {
			need = []string{"VirtualMachine.Provisioning.DiskRandomAccess"}
		}
	case "prepare":
		need = []string{"Global.DisableMethods"}
	case "endaccess":
		need = []string{"Global.EnableMethods"}
	}
	if id := l.lacked(need...); id != "" {
		return fails(vixLogin, "missing privilege %s", id)
	}
	return nil
}

// lacked is the first of these privileges that the user does not have, or nothing.
func (l *Lab) lacked(privileges ...string) string {
	missing := l.config().MissingPrivileges
	for _, id := range privileges {
		if slices.Contains(missing, id) {
			return id
		}
	}
	return ""
}

func (l *Lab) connect(msg map[string]string) *vixFault {
	if moref := msg["moref"]; moref != "" && l.vmByValue(moref) == nil {
		return fails(vixAccess, "no virtual machine %s", moref)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settings.VCenterConnections > 0 && l.open >= l.settings.VCenterConnections {
		return fails(vixNoConnection, "too many connections: %d", l.open)
	}
	l.open++
	l.peak = max(l.peak, l.open)
	return nil
}

func (l *Lab) vmByValue(moref string) *simulator.VirtualMachine {
	moref = strings.TrimPrefix(moref, "moref=")
	return l.vm(types.ManagedObjectReference{Type: "VirtualMachine", Value: moref})
}

// target is the disk that an open asks for.
type target struct {
	vm       *simulator.VirtualMachine
	st       *vmState
	key      int32
	at       *link
	snapshot string
	host     string
	ide      bool
	tracker  *tracker
}

// findDisk resolves moref, snapshot and path to a link, with the refusals of VDDK.
func (l *Lab) findDisk(msg map[string]string) (*target, *vixFault) {
	vm := l.vmByValue(msg["moref"])
	if vm == nil {
		return nil, fails(vixAccess, "no virtual machine %s", msg["moref"])
	}
	t := &target{vm: vm, st: l.state(vm.Self), snapshot: msg["snapshot"]}
	if !l.waitExclusive(t.st) {
		return nil, fails(vixLocked, "a task is at work on %s", vm.Name)
	}
	file := msg["path"]
	var fault *vixFault
	ctx := l.context()
	t.st.data.Lock()
	defer t.st.data.Unlock()
	ctx.WithLock(vm, func() {
		devices := vm.Config.Hardware.Device
		if t.snapshot != "" {
			snap, ok := ctx.Map.Get(types.ManagedObjectReference{
				Type: "VirtualMachineSnapshot", Value: t.snapshot,
			}).(*simulator.VirtualMachineSnapshot)
			if !ok || snap.Vm != vm.Self {
				fault = fails(vixAccess, "%s is no snapshot of %s", t.snapshot, vm.Name)
				return
			}
			devices = snap.Config.Hardware.Device
		}
		for _, disk := range disks(devices) {
			if diskPath(disk) != file {
				continue
			}
			t.key, t.at = disk.Key, l.link(file)
			t.ide = disk.ControllerKey == 200 || disk.ControllerKey == 201
		}
		host, _ := ctx.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
		t.host = host.Name
		t.tracker = t.st.trackers[t.key]
		switch {
		case t.at == nil && l.link(file) == nil:
			fault = fails(vixFileNotFound, "no such file: %s", file)
		case t.at == nil:
			fault = fails(vixAccess, "%s is no disk of %s as asked for", file, vm.Name)
		case t.snapshot == "" && vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff:
			fault = fails(vixFail, "%s is the running disk of a virtual machine", file)
		}
	})
	return t, fault
}

func (l *Lab) openDisk(msg map[string]string) (*handle, []string, *vixFault) {
	t, fault := l.findDisk(msg)
	if fault != nil {
		return nil, nil, fault
	}
	h := &handle{
		vm: t.vm.Self, vmName: plainName(t.vm.Name), path: t.at.dsPath, links: t.at.chain(), write: msg["readonly"] != "1",
		proxy: msg["proxy"], nfcKiB: number(msg["nfc_kib"]),
	}
	if msg["single_link"] == "1" {
		h.links = h.links[:1]
	}
	l.mu.Lock()
	busy := l.conflict(h)
	l.mu.Unlock()
	if busy == "" {
		busy = l.usedByOther(use{leaf: t.at, write: h.write}, t.vm.Self.Value)
	}
	if busy != "" {
		return nil, nil, fails(vixLocked, "locked: %s", busy)
	}
	if why := l.brokenChain(t.at); why != "" {
		return nil, nil, fails(vixFileNotFound, "%s", why)
	}
	fault = fails(vixAccess, "no transport mode in %q can be used", msg["modes"])
	for _, mode := range strings.FieldsFunc(msg["modes"], func(r rune) bool { return r == ':' || r == ' ' }) {
		var why *vixFault
		switch mode {
		case "nbd", "nbdssl":
			why = l.tryNBD(t, h)
		case "hotadd":
			why = l.tryHotAdd(t, h)
		case "san":
			why = l.trySAN(t, h)
		default:
			why = fails(vixInvalidArg, "unknown transport mode %s", mode)
		}
		if why != nil {
			log.Printf("mode %s of %s: %d %s", mode, t.at.dsPath, why.code, why.text)
			fault = why
			continue
		}
		h.mode = mode
		return l.opened(t, h)
	}
	return nil, nil, fault
}

// opened builds the reply. An nbd handle is locked when its ticket reaches the host; the others are locked now.
func (l *Lab) opened(t *target, h *handle) (*handle, []string, *vixFault) {
	lines := []string{
		"status 0", "mode " + h.mode, fmt.Sprintf("capacity %d", t.at.capacity), "adapter 3", "uuid " + t.at.uuid,
		fmt.Sprintf("links %d", len(h.links)), "vm " + plainName(t.vm.Name), "host " + t.host,
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	key := hex.EncodeToString(raw[:])
	lines = append(lines, "ticket "+key)
	if h.host != "" {
		lines = append(lines, fmt.Sprintf("nfc_port %d", l.nfcPort))
	}
	for _, at := range h.links {
		lines = append(lines, "link "+at.stem)
	}
	if h.write && t.tracker != nil && t.snapshot == "" {
		lines = append(lines, "ctk "+t.tracker.file)
	}
	if h.host == "" {
		return h, lines, nil
	}
	issued.put(key, h)
	return nil, lines, nil
}

func (l *Lab) tryNBD(t *target, h *handle) *vixFault {
	if h.write && t.snapshot != "" {
		return fails(vixReadOnly, "a snapshot's disk cannot be written in this mode")
	}
	if host := l.nfc[t.host]; host == nil || !host.isOpen() {
		return fails(vixRefused, "the NFC port of %s refuses connections", t.host)
	}
	h.host = t.host
	return nil
}

// prepare disables or enables RelocateVM_Task. Who disabled it must be who enables it.
func (l *Lab) prepare(msg map[string]string, disable bool) *vixFault {
	if l.standalone {
		return fails(vixNotSupported, "an ESXi host cannot disable migration: there is no vCenter") // 6 is a guess
	}
	vm := l.vmByValue(msg["moref"])
	if vm == nil {
		return fails(vixAccess, "no virtual machine %s", msg["moref"])
	}
	identity := msg["identity"]
	if len(identity) > 50 {
		return fails(vixInvalidArg, "the identity is longer than 50 characters")
	}
	l.mu.Lock()
	by, is := l.prepared[vm.Self.Value]
	switch {
	case disable && is:
		l.mu.Unlock()
		return fails(vixBusy, "RelocateVM_Task is already disabled by %s", by)
	case disable:
		l.prepared[vm.Self.Value] = identity
	case is && by != identity:
		l.mu.Unlock()
		return fails(vixAccess, "RelocateVM_Task was disabled by %s", by)
	default:
		delete(l.prepared, vm.Self.Value)
	}
	l.mu.Unlock()
	ctx := l.context()
	ctx.WithLock(vm, func() {
		var left []string
		for _, name := range vm.DisabledMethod {
			if name != "RelocateVM_Task" {
				left = append(left, name)
			}
		}
		if disable {
			left = append(left, "RelocateVM_Task")
		}
		ctx.Update(vm, []types.PropertyChange{{Name: "disabledMethod", Val: left}})
	})
	return nil
}

func (l *Lab) preparedBy(value string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.prepared[value]
}
