package main

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// nfcHost is the NFC service (port 902 on a real ESXi) of one host.
type nfcHost struct {
	name     string
	moref    string
	second   bool // of the second datacenter
	mu       sync.Mutex
	listener net.Listener // nil: the port is closed
	limitKiB int64
	usedKiB  int64
	peakKiB  int64
	identity *hostIdentity
	issued   map[string]nfcTicket // for clients without VDDK, by what they present
}

// ticket is what op open gives a client to show to the host.
type ticket struct {
	handle  *handle
	expires time.Time
}

type tickets struct {
	sync.Mutex
	open map[string]ticket
}

var issued = tickets{open: map[string]ticket{}}

func (t *tickets) put(key string, h *handle) {
	t.Lock()
	defer t.Unlock()
	now := time.Now()
	for k, old := range t.open {
		if now.After(old.expires) {
			delete(t.open, k)
		}
	}
	t.open[key] = ticket{h, now.Add(time.Minute)}
}

func (t *tickets) take(key string) *handle {
	t.Lock()
	defer t.Unlock()
	got, ok := t.open[key]
	delete(t.open, key)
	if !ok || time.Now().After(got.expires) {
		return nil
	}
	return got.handle
}

// addNFC gives a host its NFC service, which listenNFC opens; a limit of 0 is that of ESXi 6.x and 7.
func (l *Lab) addNFC(name string, ref types.ManagedObjectReference, limitMiB float64) (*nfcHost, error) {
	if limitMiB == 0 {
		limitMiB = 48
	}
	own, err := newHostIdentity(name)
	if err != nil {
		return nil, err
	}
	l.nfc[name] = &nfcHost{
		name: name, moref: ref.Value, limitKiB: int64(limitMiB * 1024), identity: own, issued: map[string]nfcTicket{},
	}
	return l.nfc[name], nil
}

// inFirst tells whether a host is in the first datacenter: what is made without a word about where is made there.
func (l *Lab) inFirst(host string) bool {
	known := l.nfc[host]
	return known != nil && !known.second
}

// listenNFC opens one port, the same on every host's address.
func (l *Lab) listenNFC(hint int) (int, error) {
	var names []string
	for name := range l.nfc {
		names = append(names, name)
	}
	sort.Strings(names)
	var last error
	for try := 0; try < 50; try++ {
		port := hint
		if try > 0 {
			port = 0
		}
		var opened []net.Listener
		for _, name := range names {
			listener, err := net.Listen("tcp", net.JoinHostPort(name, strconv.Itoa(port)))
			if err != nil {
				last = err
				break
			}
			port = listener.Addr().(*net.TCPAddr).Port
			opened = append(opened, listener)
		}
		if len(opened) < len(names) {
			for _, listener := range opened {
				_ = listener.Close()
			}
			continue
		}
		for i, name := range names {
			l.nfc[name].listener = opened[i]
			go l.serveNFC(l.nfc[name], opened[i])
		}
		return port, nil
	}
	return 0, fmt.Errorf("no port is free on every host: %w", last)
}

// setNFCOpen closes or opens the port of a host.
func (l *Lab) setNFCOpen(h *nfcHost, open bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !open && h.listener != nil {
		err := h.listener.Close()
		h.listener = nil
		return err
	}
	if open && h.listener == nil {
		listener, err := net.Listen("tcp", net.JoinHostPort(h.name, strconv.Itoa(l.nfcPort)))
		if err != nil {
			return err
		}
		h.listener = listener
		go l.serveNFC(h, listener)
	}
	return nil
}

func (h *nfcHost) isOpen() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.listener != nil
}

func (l *Lab) serveNFC(h *nfcHost, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go l.hostSession(h, conn)
	}
}

// reserve takes buffers out of a host's NFC memory; false if they do not fit.
func (h *nfcHost) reserve(kib int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.usedKiB+kib > h.limitKiB {
		return false
	}
	h.usedKiB += kib
	h.peakKiB = max(h.peakKiB, h.usedKiB)
	return true
}

func (h *nfcHost) free(kib int64) {
	h.mu.Lock()
	h.usedKiB -= kib
	h.mu.Unlock()
}

// nfcSession is one client's connection to a host: op attach makes it the disk's lock, op close ends it.
func (l *Lab) nfcSession(host *nfcHost, w *wire) {
	defer w.close()
	var held *handle
	defer func() {
		if held != nil {
			host.free(held.nfcKiB)
			l.linger(held)
		}
	}()
	for {
		msg, err := w.read()
		if err != nil {
			return
		}
		switch msg["op"] {
		case "attach":
			h := issued.take(msg["ticket"])
			if h == nil || held != nil || h.host != host.name {
				w.status(13, "the ticket is not valid")
				continue
			}
			if kib := number(msg["nfc_kib"]); kib > 0 {
				h.nfcKiB = kib
			}
			if !host.reserve(h.nfcKiB) {
				w.status(5, fmt.Sprintf("NFC error 5: failed to allocate the requested %d bytes", h.nfcKiB*1024))
				continue
			}
			if file := l.acquire(h); file != "" {
				host.free(h.nfcKiB)
				w.status(15, "locked: "+file)
				continue
			}
			held = h
			w.reply("status 0")
		case "close":
			if held != nil {
				host.free(held.nfcKiB)
				l.drop(held)
				held = nil
			}
			w.reply("status 0")
			return
		default:
			w.status(3, "unknown op")
		}
	}
}
