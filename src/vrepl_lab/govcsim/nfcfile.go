package main

import (
	"crypto/rand"
	"io"
	"net"
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// nfcFile is a disk that an NFC client has open. What it writes stays in the buffer until the file is closed or the
// buffer is full, and is lost with the connection: nobody has published what an ESXi promises before the close.
type nfcFile struct {
	id      uint64
	handle  *handle
	tracker *tracker

	arriving []byte // the write whose fragments come now
	number   uint32

	mu      sync.Mutex
	disk    *openLink
	buffer  []bufferedWrite
	bytes   int64
	setting *labSettings
}

type bufferedWrite struct {
	offset int64
	data   []byte
}

// openNFC opens a file by its datastore path, with the refusals of a host (vatesfr/xen-orchestra vectura,
// host-requirements-and-limits; cloudbase/OpenVixDiskLib docs/host_switch.md for the disk of a running VM).
func (l *Lab) openNFC(s *nfcAIO, path string, write bool) (*nfcFile, *vixFault) {
	vm := l.vm(s.ticket.vm)
	if vm == nil {
		return nil, fails(11, "NfcAioProcessOpenFileMsg: permission check failed: the virtual machine is gone")
	}
	if write && !s.ticket.writable {
		return nil, fails(11, "NfcAioProcessOpenFileMsg: the ticket is for reading")
	}
	st := l.state(vm.Self)
	if !l.waitExclusive(st) {
		return nil, fails(vixLocked, "DiskLib error 16392: Failed to lock the file")
	}
	st.data.Lock()
	defer st.data.Unlock()
	at, key, fault := l.fileOfVM(vm, st, path)
	if fault != nil {
		return nil, fault
	}
	if write && key != s.ticket.key {
		return nil, fails(11, "NfcAioProcessOpenFileMsg: permission check failed: %s is not the leaf of disk %d", path, s.ticket.key)
	}
	h := &handle{
		vm: vm.Self, vmName: plainName(vm.Name), path: at.dsPath, links: at.chain(), write: write, mode: s.mode,
		host: s.host.name, nfcKiB: s.reserved,
	}
	if file := l.acquire(h); file != "" {
		return nil, fails(vixLocked, "DiskLib error 16392: Failed to lock the file %s", file)
	}
	disk, err := at.open(write)
	if err != nil {
		l.drop(h)
		return nil, fails(vixFail, "%v", err)
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	file := &nfcFile{id: le.Uint64(raw[:]) | 1, handle: h, disk: disk, setting: l.library}
	if write {
		file.tracker = st.trackers[key]
	}
	return file, nil
}

// fileOfVM finds a link among all that a VM's disks stand on, now or in a snapshot; key is the device's if it is a leaf.
func (l *Lab) fileOfVM(vm *simulator.VirtualMachine, st *vmState, path string) (at *link, key int32, fault *vixFault) {
	ctx := l.context()
	ctx.WithLock(vm, func() {
		at = l.link(path)
		if at == nil {
			fault = fails(vixFileNotFound, "no such file: %s", path)
			return
		}
		running := vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff
		for _, disk := range disks(vm.Config.Hardware.Device) {
			leaf := l.link(diskPath(disk))
			if leaf == nil {
				continue
			}
			if leaf == at {
				key = disk.Key
				if running {
					fault = fails(vixFail, "Thin/TBZ/Sparse disks cannot be opened in multiwriter mode")
				}
				return
			}
			if slices.Contains(leaf.chain(), at) {
				return
			}
		}
		for _, snap := range st.snapshots {
			for _, disk := range snap.disks {
				if slices.Contains(disk.frozen.chain(), at) {
					return
				}
			}
		}
		fault = fails(11, "NfcAioProcessOpenFileMsg: permission check failed: %s is no disk of %s", path, vm.Name)
	})
	return at, key, fault
}

func (f *nfcFile) read(into []byte, offset int64) error {
	if f.handle.write { // one that is only read never changes
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	if f.disk == nil {
		return io.ErrClosedPipe
	}
	if err := f.disk.read(into, offset); err != nil {
		return err
	}
	end := offset + int64(len(into))
	for _, w := range f.buffer {
		from, to := max(w.offset, offset), min(w.offset+int64(len(w.data)), end)
		if from < to {
			copy(into[from-offset:to-offset], w.data[from-w.offset:])
		}
	}
	return nil
}

func (f *nfcFile) write(data []byte, offset int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buffer = append(f.buffer, bufferedWrite{offset, data})
	f.bytes += int64(len(data))
	return f.drain(f.setting.writeBuffer())
}

// drain stores the oldest writes until no more than so many bytes are left. The caller holds the lock.
func (f *nfcFile) drain(left int64) error {
	for f.bytes > left && len(f.buffer) > 0 {
		if f.disk == nil {
			return io.ErrClosedPipe
		}
		w := f.buffer[0]
		if err := f.tracker.touch(w.offset, int64(len(w.data))); err != nil {
			return err
		}
		if err := f.disk.write(w.data, w.offset); err != nil {
			return err
		}
		f.buffer[0] = bufferedWrite{}
		f.buffer = f.buffer[1:]
		f.bytes -= int64(len(w.data))
	}
	return nil
}

// close stores everything and lets go of the files.
func (f *nfcFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.drain(0); err != nil {
		return err
	}
	f.disk.close()
	f.disk = nil
	return nil
}

// abandon is the end of a client that did not close.
func (f *nfcFile) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buffer, f.bytes = nil, 0
	f.disk.close()
	f.disk = nil
}

// allocated answers type 13: a bit per chunk. On a handle that wrote, what is in its buffer is not told.
func (s *nfcAIO) allocated(number uint32, payload []byte) error {
	chunk, offset, count := int64(le.Uint64(payload[16:])), int64(le.Uint64(payload[24:])), int64(le.Uint64(payload[32:]))
	capacity := s.file.handle.links[0].capacity
	if done, err := s.meet(opAllocated, aioMap, number); done {
		return err
	}
	switch {
	case !s.lab.library.allocatedSupported():
		return s.refuse(aioMap, number, 6, "not supported")
	case chunk < 65536 || chunk%512 != 0 || offset%chunk != 0 || count <= 0 || count > 512*1024:
		return s.refuse(aioMap, number, vixInvalidArg, "%d chunks of %d bytes at %d", count, chunk, offset)
	case offset+chunk*count > capacity:
		return s.refuse(aioMap, number, vixInvalidArg, "past the end of the disk")
	}
	bitmap := make([]byte, (count+31)/32*4)
	f := s.file
	f.mu.Lock()
	for c := int64(0); c < count; c++ {
		first, last := (offset+c*chunk)/grainSize, (offset+(c+1)*chunk-1)/grainSize
		if f.disk.holds(first, last) {
			bitmap[c/8] |= 1 << (c % 8)
		}
	}
	f.mu.Unlock()
	reply := make([]byte, 48)
	le.PutUint64(reply[32:], uint64(count))
	return s.answer(aioMap, number, reply, bitmap)
}

// holds tells whether the chain has bytes for any of these grains.
func (o *openLink) holds(first, last int64) bool {
	for grain := first; grain <= last; grain++ {
		for at := o; at != nil; at = at.parent {
			if at.marks[grain] == grainPresent {
				return true
			}
			if at.marks[grain] == grainUnmapped {
				break
			}
		}
	}
	return false
}

var _ net.Conn = (*peeked)(nil)
