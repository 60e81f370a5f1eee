package main

import (
	"encoding/binary"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// labSettings is settings.bin (docs/lab-internals.md section 5), mapped: what libvixDiskLib obeys, the hosts' NFC service obeys too.
type labSettings struct{ memory []byte }

const (
	settingsBytes = 4096
	rulesAt       = 128
	ruleBytes     = 120
	ruleCount     = 32
)

// Operations and actions of a fault rule.
const (
	opOpen = iota + 1
	opRead
	opWrite
	opFlush
	opClose
	opAllocated
	opConnect
)

const (
	actionError = iota + 1
	actionFreeze
	actionCrash
	actionLost
)

// mapSettings maps the file; a lab without one (a test's) obeys nothing.
func mapSettings(name string) *labSettings {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return &labSettings{make([]byte, settingsBytes)}
	}
	defer f.Close()
	memory, err := syscall.Mmap(int(f.Fd()), 0, settingsBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return &labSettings{make([]byte, settingsBytes)}
	}
	return &labSettings{memory}
}

func (s *labSettings) number(at int) uint64 { return binary.LittleEndian.Uint64(s.memory[at:]) }

func (s *labSettings) latency() time.Duration   { return time.Duration(s.number(16)) * time.Microsecond }
func (s *labSettings) bandwidth() int64         { return int64(s.number(24)) }
func (s *labSettings) writeBuffer() int64       { return int64(s.number(32)) }
func (s *labSettings) allocatedSupported() bool { return s.number(48) != 0 }

// diskFault is what a call of a client meets.
type diskFault struct {
	code        uint64
	freeze      time.Duration
	crash, lost bool
}

// take counts a call against every rule that fits it, and returns what fires.
func (s *labSettings) take(op uint32, vm, mode string) diskFault {
	var f diskFault
	for i := 0; i < ruleCount; i++ {
		r := s.memory[rulesAt+i*ruleBytes:][:ruleBytes]
		if atomic.LoadUint32((*uint32)(unsafe.Pointer(&r[0]))) != op || !fits(r[48:96], vm) || !fits(r[96:104], mode) {
			continue
		}
		nth := atomic.AddUint64((*uint64)(unsafe.Pointer(&r[40])), 1)
		first, count := max(binary.LittleEndian.Uint64(r[16:]), 1), binary.LittleEndian.Uint64(r[24:])
		if nth < first || (count > 0 && nth-first >= count) {
			continue
		}
		switch binary.LittleEndian.Uint32(r[4:]) {
		case actionError:
			if f.code == 0 {
				f.code = max(binary.LittleEndian.Uint64(r[8:]), 1)
			}
		case actionFreeze:
			f.freeze += time.Duration(binary.LittleEndian.Uint64(r[32:])) * time.Millisecond
		case actionCrash:
			f.crash = true
		case actionLost:
			f.lost = true
		}
	}
	return f
}

func fits(pattern []byte, value string) bool {
	text := strings.TrimRight(string(pattern), "\x00")
	return text == "" || text == value
}
