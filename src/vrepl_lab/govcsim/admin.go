package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"sort"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// adminHandler serves control.sock (docs/lab-internals.md section 6).
func (l *Lab) adminHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			result, err := f(r)
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				result = map[string]string{"error": err.Error()}
			}
			if result == nil {
				result = map[string]string{}
			}
			_ = json.NewEncoder(w).Encode(result)
		})
	}
	handle("GET /status", func(*http.Request) (any, error) { return l.status(), nil })
	handle("POST /status/reset-peaks", func(*http.Request) (any, error) { return nil, l.resetPeaks() })
	handle("GET /settings", func(*http.Request) (any, error) { return l.config(), nil })
	handle("POST /settings", l.postSettings)
	handle("POST /faults", l.postFaults)
	handle("GET /faults", func(*http.Request) (any, error) {
		l.rules.Lock()
		defer l.rules.Unlock()
		return append([]*faultRule{}, l.rules.rules...), nil
	})
	handle("PUT /disk/write", l.guestWrite)
	handle("POST /disk/unmap", l.guestUnmap)
	handle("POST /disk/export", l.exportDisk)
	handle("POST /cbt/reset", l.resetCBT)
	handle("POST /vm/tools", l.postTools)
	handle("POST /vm/power-loss", l.losePower)
	handle("GET /vm/guest-folder", func(r *http.Request) (any, error) {
		vm, err := l.vmNamed(r)
		if err != nil {
			return nil, err
		}
		folder, err := l.guestFolder(vm.Self)
		return map[string]string{"folder": folder}, err
	})
	handle("GET /soap-calls", func(*http.Request) (any, error) {
		l.calls.Lock()
		defer l.calls.Unlock()
		by := map[string]int{}
		for k, v := range l.calls.byMethod {
			by[k] = v
		}
		return map[string]any{"total": l.calls.total, "by_method": by}, nil
	})
	handle("POST /soap-calls/reset", func(*http.Request) (any, error) {
		l.calls.Lock()
		defer l.calls.Unlock()
		l.calls.total, l.calls.byMethod = 0, nil
		return nil, nil
	})
	return mux
}

func (l *Lab) status() any {
	type lock struct {
		VM        string `json:"vm"`
		Path      string `json:"path"`
		Write     bool   `json:"write"`
		Mode      string `json:"mode"`
		Proxy     string `json:"proxy"`
		Host      string `json:"host"`
		NFCKiB    int64  `json:"nfc_kib"`
		Lingering bool   `json:"lingering"`
		Attached  string `json:"attached"`
	}
	type host struct {
		Host  string `json:"host"`
		Used  int64  `json:"used_kib"`
		Peak  int64  `json:"peak_kib"`
		Limit int64  `json:"limit_kib"`
		Open  bool   `json:"open"`
	}
	locks, hosts := []lock{}, []host{}
	l.mu.Lock()
	for h := range l.handles {
		attached := ""
		if h.device != 0 {
			attached = h.proxyVM.Value
		}
		locks = append(locks, lock{h.vmName, h.path, h.write, h.mode, h.proxy, h.host, h.nfcKiB, h.lingering, attached})
	}
	connections := map[string]int{"used": l.open, "peak": l.peak, "limit": l.settings.VCenterConnections}
	l.mu.Unlock()
	for _, h := range l.nfc {
		if h.second {
			continue // settings and status speak of the hosts that are said to be ready
		}
		h.mu.Lock()
		hosts = append(hosts, host{h.name, h.usedKiB, h.peakKiB, h.limitKiB, h.listener != nil})
		h.mu.Unlock()
	}
	sort.Slice(locks, func(i, j int) bool { return locks[i].Path < locks[j].Path })
	sort.Slice(hosts, func(i, j int) bool { return hosts[i].Host < hosts[j].Host })
	return map[string]any{
		"site": l.site, "power_ons": l.powerOnPeaks(), "locks": locks, "nfc": hosts, "connections": connections, "proxies": l.proxyDisks(),
	}
}

type proxyDisks struct {
	Proxy string   `json:"proxy"`
	VM    string   `json:"vm"`
	Disks []string `json:"disks"`
}

// proxyDisks tells of each proxy that is a VM here which disks that has, as its devices say it: its own, and what
// HotAdd attached.
func (l *Lab) proxyDisks() []proxyDisks {
	found := []proxyDisks{}
	folders, _ := filepath.Glob(l.sysroot("*", ""))
	for _, folder := range folders {
		name := filepath.Base(filepath.Dir(folder))
		vm, fault := l.proxyVM(name)
		if fault != nil {
			continue
		}
		one := proxyDisks{Proxy: name, Disks: []string{}}
		l.context().WithLock(vm, func() {
			one.VM = plainName(vm.Name)
			for _, device := range vm.Config.Hardware.Device {
				if disk, ok := device.(*types.VirtualDisk); ok {
					one.Disks = append(one.Disks, diskPath(disk))
				}
			}
		})
		found = append(found, one)
	}
	return found
}

func (l *Lab) resetPeaks() error {
	l.mu.Lock()
	l.peak = l.open
	l.mu.Unlock()
	for _, h := range l.nfc {
		h.mu.Lock()
		h.peakKiB = h.usedKiB
		h.mu.Unlock()
	}
	return nil
}

// postSettings changes the settings that the request names. Maps replace what they were, too.
func (l *Lab) postSettings(r *http.Request) (any, error) {
	s := l.config()
	s.NFCLimitMiB, s.FreeBytes = nil, nil
	s.HardwareMax, s.HostMemoryMiB, s.Guests = nil, nil, nil
	s.NFCClosed, s.MissingPrivileges = slices.Clone(s.NFCClosed), slices.Clone(s.MissingPrivileges)
	s.UnknownGuestIDs = slices.Clone(s.UnknownGuestIDs)
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return nil, err
	}
	if s.CBTBlockSize < grainSize || s.CBTBlockSize&(s.CBTBlockSize-1) != 0 {
		return nil, fmt.Errorf("cbt_block_size must be a power of two, at least %d", grainSize)
	}
	if !slices.Contains(nfcTroubles, s.NFCTrouble) {
		return nil, fmt.Errorf("nfc_trouble must be one of %v", nfcTroubles)
	}
	if s.Quiesce != "ok" && s.Quiesce != "fail" {
		return nil, fmt.Errorf("quiesce must be ok or fail")
	}
	for name := range s.NFCLimitMiB {
		if l.nfc[name] == nil {
			return nil, fmt.Errorf("no host %q", name)
		}
	}
	for i := range s.Guests {
		if err := s.Guests[i].check(); err != nil {
			return nil, err
		}
	}
	closed := map[string]bool{}
	for _, name := range s.NFCClosed {
		if l.nfc[name] == nil {
			return nil, fmt.Errorf("no host %q", name)
		}
		closed[name] = true
	}
	for name, mib := range s.NFCLimitMiB {
		h := l.nfc[name]
		h.mu.Lock()
		h.limitKiB = int64(mib * 1024)
		h.mu.Unlock()
	}
	l.mu.Lock()
	if s.Guests == nil {
		s.Guests = l.settings.Guests
	} else if r.URL.Query().Get("add") == "1" {
		s.Guests = slices.Concat(l.settings.Guests, s.Guests)
	}
	if s.FreeBytes == nil {
		s.FreeBytes = l.settings.FreeBytes
	}
	if s.HostMemoryMiB == nil {
		s.HostMemoryMiB = l.settings.HostMemoryMiB
	}
	if s.HardwareMax == nil {
		s.HardwareMax = l.settings.HardwareMax
	}
	l.settings = s
	l.mu.Unlock()
	for name, h := range l.nfc {
		if err := l.setNFCOpen(h, !closed[name]); err != nil {
			return nil, err
		}
	}
	l.refreshSpace(true)
	return l.config(), nil
}

func (l *Lab) postFaults(r *http.Request) (any, error) {
	var rules []*faultRule
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rules); err != nil {
		return nil, err
	}
	add := r.URL.Query().Get("add") == "1"
	if !add {
		defer l.endHung()
	}
	return nil, l.rules.put(rules, add)
}

func (l *Lab) vmNamed(r *http.Request) (*simulator.VirtualMachine, error) {
	name := r.URL.Query().Get("vm")
	ctx := l.context()
	var found []*simulator.VirtualMachine
	for _, entity := range ctx.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		ctx.WithLock(vm, func() {
			if plainName(vm.Name) == name || vm.Name == name || vm.Self.Value == name {
				found = append(found, vm)
			}
		})
	}
	if len(found) > 1 { // a twin in the second datacenter is reached by its moref
		found = slices.DeleteFunc(found, func(vm *simulator.VirtualMachine) bool { return l.inTwin(ctx, vm) })
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d virtual machines are named %q", len(found), name)
	}
	return found[0], nil
}

// diskAt finds disk index (in the order of config.hardware.device) of a VM, or of one of its snapshots by name or moref.
// It returns the link and the device's key. The caller holds st.data.
func (l *Lab) diskAt(vm *simulator.VirtualMachine, st *vmState, r *http.Request) (*link, int32, error) {
	index, err := strconv.Atoi(r.URL.Query().Get("index"))
	if err != nil {
		return nil, 0, fmt.Errorf("index: %w", err)
	}
	name := r.URL.Query().Get("snapshot")
	ctx := l.context()
	var at *link
	var key int32
	ctx.WithLock(vm, func() {
		devices := vm.Config.Hardware.Device
		if name != "" {
			var ref types.ManagedObjectReference
			if ref, err = snapshotNamed(vm, name); err != nil {
				return
			}
			devices = ctx.Map.Get(ref).(*simulator.VirtualMachineSnapshot).Config.Hardware.Device
		}
		all := disks(devices)
		if index < 0 || index >= len(all) {
			err = fmt.Errorf("%s has %d disks", vm.Name, len(all))
			return
		}
		key, at = all[index].Key, l.link(diskPath(all[index]))
		if at == nil {
			err = fmt.Errorf("%s is not there", diskPath(all[index]))
		}
	})
	return at, key, err
}

// guestWrite is what a guest does to its current disk.
func (l *Lab) guestWrite(r *http.Request) (any, error) {
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("offset: %w", err)
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	return nil, l.onLeaf(r, offset, int64(len(data)), func(o *openLink) error { return o.write(data, offset) })
}

// guestUnmap is what a guest's TRIM does.
func (l *Lab) guestUnmap(r *http.Request) (any, error) {
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("offset: %w", err)
	}
	length, err := strconv.ParseInt(r.URL.Query().Get("length"), 10, 64)
	if err != nil || length <= 0 {
		return nil, fmt.Errorf("length must be a number of bytes")
	}
	return nil, l.onLeaf(r, offset, length, func(o *openLink) error { return o.unmap(offset, length) })
}

// onLeaf changes the content of a VM's current disk, and tells change tracking before it does.
func (l *Lab) onLeaf(r *http.Request, offset, length int64, do func(*openLink) error) error {
	vm, err := l.vmNamed(r)
	if err != nil {
		return err
	}
	st := l.state(vm.Self)
	st.data.Lock()
	defer st.data.Unlock()
	at, key, err := l.diskAt(vm, st, r)
	if err != nil {
		return err
	}
	if offset < 0 || length < 0 || offset > at.capacity-length {
		return fmt.Errorf("offset %d and length %d are not within %d bytes", offset, length, at.capacity)
	}
	if l.anyHandle(at) {
		return fmt.Errorf("%s is open elsewhere", at.dsPath)
	}
	if err := st.trackers[key].touch(offset, length); err != nil {
		return err
	}
	o, err := at.open(true)
	if err != nil {
		return err
	}
	defer o.close()
	return do(o)
}

func (l *Lab) exportDisk(r *http.Request) (any, error) {
	vm, err := l.vmNamed(r)
	if err != nil {
		return nil, err
	}
	out := r.URL.Query().Get("out")
	if !filepath.IsAbs(out) {
		return nil, fmt.Errorf("out must be an absolute path")
	}
	st := l.state(vm.Self)
	st.data.Lock()
	defer st.data.Unlock()
	at, _, err := l.diskAt(vm, st, r)
	if err != nil {
		return nil, err
	}
	if err := export(at, out); err != nil {
		return nil, err
	}
	return map[string]any{"capacity": at.capacity, "path": at.dsPath}, nil
}

func (l *Lab) resetCBT(r *http.Request) (any, error) {
	vm, err := l.vmNamed(r)
	if err != nil {
		return nil, err
	}
	st := l.state(vm.Self)
	st.data.Lock()
	defer st.data.Unlock()
	_, key, err := l.diskAt(vm, st, r)
	if err != nil {
		return nil, err
	}
	t := st.trackers[key]
	if t == nil {
		return nil, fmt.Errorf("change tracking is not in effect on this disk")
	}
	if err := t.reset(l.identifier("ctk")); err != nil {
		return nil, err
	}
	ctx := l.context()
	ctx.WithLock(vm, func() { l.refreshLinks(ctx, vm, st, nil) })
	id, err := t.changeID()
	return map[string]string{"change_id": id}, err
}

func (l *Lab) postTools(r *http.Request) (any, error) {
	vm, err := l.vmNamed(r)
	if err != nil {
		return nil, err
	}
	status := r.URL.Query().Get("status")
	if status != "running" && status != "notRunning" {
		return nil, fmt.Errorf("status must be running or notRunning")
	}
	st := l.state(vm.Self)
	ctx := l.context()
	ctx.WithLock(vm, func() {
		st.tools = st.tools || status == "running"
		st.noTools = status == "notRunning"
		on := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
		l.setTools(ctx, vm, on && status == "running")
	})
	return nil, nil
}
