package main

import (
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// handle is an open disk of a data mover, or one that a dead mover left behind.
type handle struct {
	vm        types.ManagedObjectReference
	vmName    string
	path      string // datastore path of the link that was opened
	links     []*link
	write     bool
	mode      string
	proxy     string
	host      string // ESXi host whose NFC memory it uses; "" for hotadd and san
	nfcKiB    int64
	lingering bool
	proxyVM   types.ManagedObjectReference // hotadd: where the disk is attached
	device    int32                        // hotadd: its key there; 0 when detached
}

// conflict names a link that another handle holds in a way that excludes this one: one writer or many readers per link.
// The caller holds Lab.mu.
func (l *Lab) conflict(want *handle) string {
	for other := range l.handles {
		for i, a := range other.links {
			for j, b := range want.links {
				if a != b {
					continue
				}
				// Only the leaf of a writer's chain is written; what is below is read.
				if (other.write && i == 0) || (want.write && j == 0) {
					return a.dsPath
				}
			}
		}
	}
	return ""
}

// acquire registers a handle, or names the link that is locked.
func (l *Lab) acquire(h *handle) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if file := l.conflict(h); file != "" {
		return file
	}
	l.handles[h] = struct{}{}
	return ""
}

// drop ends a handle's lock at once.
func (l *Lab) drop(h *handle) {
	l.mu.Lock()
	delete(l.handles, h)
	l.mu.Unlock()
}

// linger keeps a dead client's lock for the time that the setting says, and for as long as its disk hangs on a proxy VM.
func (l *Lab) linger(h *handle) {
	l.mu.Lock()
	h.lingering = true
	wait := time.Duration(l.settings.LockLingerS * float64(time.Second))
	l.mu.Unlock()
	time.AfterFunc(wait, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.device == 0 {
			delete(l.handles, h)
		}
	})
}

// openForWriting names a disk, of those given, that some handle holds open for writing, or "".
func (l *Lab) openForWriting(leaves map[int32]*link) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.handles {
		if !h.write {
			continue
		}
		for _, leaf := range leaves {
			for at := leaf; at != nil; at = at.parent {
				if len(h.links) > 0 && h.links[0] == at {
					return at.dsPath
				}
			}
		}
	}
	return ""
}

// anyHandle tells whether a handle holds this link, for reading or writing.
func (l *Lab) anyHandle(at *link) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.handles {
		for _, other := range h.links {
			if other == at {
				return true
			}
		}
	}
	return false
}

// hotAdded tells whether a link hangs on this VM because of HotAdd, as opposed to being its own disk.
func (l *Lab) hotAdded(at *link, proxy types.ManagedObjectReference) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.handles {
		if h.device != 0 && h.proxyVM == proxy && h.links[0] == at {
			return true
		}
	}
	return false
}

// detached notes that a disk was taken off a VM: if HotAdd had put it there, a dead client's lock goes with it.
func (l *Lab) detached(at *link, proxy types.ManagedObjectReference) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.handles {
		if h.device != 0 && h.proxyVM == proxy && h.links[0] == at {
			h.device = 0
			if h.lingering {
				delete(l.handles, h)
			}
		}
	}
}

// waitExclusive waits until no task of the VM works on its disks; false if that takes too long.
func (l *Lab) waitExclusive(st *vmState) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		busy := st.exclusive
		l.mu.Unlock()
		if !busy {
			return true
		}
	}
	return false
}
