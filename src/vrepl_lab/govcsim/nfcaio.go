package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// NFC as cloudbase/OpenVixDiskLib docs/nfc_open.md, nfc_read.md and nfc_write.md describe it (classic messages, AIO
// records), with what hystax/OpenVixDiskLib's versions add (sizes in OPEN_SESSION, DDB_GET, type 13) and what
// vatesfr/xen-orchestra's vectura tells of errors (a record of type 1, then the answer itself).

const (
	classicBytes = 264
	aioMagic     = 0xA100DA7A
	aioError     = 1
	aioOpen      = 2
	aioEnd       = 3
	aioOpenFile  = 4
	aioCloseFile = 5
	aioIO        = 7
	aioSockOpts  = 9
	aioDDBGet    = 11
	aioMap       = 13
	aioPool      = 22
)

const (
	mib             = 1 << 20
	largestBuffer   = 2 * mib // ESXi 8 took this and refused 16 MiB (hystax docs/nfc_open.md)
	largestRead     = mib     // vatesfr/xen-orchestra vectura, host-requirements-and-limits
	largestWrite    = 32 * mib
	largestPathName = 4096
)

var le = binary.LittleEndian

// nfcAIO is one client's NFC session.
type nfcAIO struct {
	lab     *Lab
	host    *nfcHost
	conn    net.Conn // TLS or not
	bare    net.Conn
	mode    string
	ticket  nfcTicket
	trouble string // of the setting nfc_trouble, as the session began
	vmName  string

	reserved int64 // KiB of the host's NFC memory
	counted  bool  // against the vCenter's connections
	piece    int64 // bytes of data in one record
	budget   int64 // bytes that may be in flight
	file     *nfcFile

	sending  sync.Mutex
	mu       sync.Mutex
	flying   int64
	nextFree time.Time // when the wire is free again, under the bandwidth setting
	working  sync.WaitGroup
	reversed bool
}

// end gives back what the session holds. A file that was not closed leaves its lock, and loses what is in its buffer.
func (s *nfcAIO) end() {
	_ = s.bare.Close()
	s.working.Wait()
	if s.file != nil {
		s.file.abandon()
		s.lab.linger(s.file.handle)
	}
	s.release()
}

func (s *nfcAIO) release() {
	s.host.free(s.reserved)
	s.reserved = 0
	if s.counted {
		s.lab.mu.Lock()
		s.lab.open--
		s.lab.mu.Unlock()
		s.counted = false
	}
}

// greet is the classic handshake.
func (s *nfcAIO) greet(tag string) error {
	expect := func(kind uint32) ([]byte, error) {
		message := make([]byte, classicBytes)
		if _, err := io.ReadFull(s.conn, message); err != nil {
			return nil, err
		}
		if got := le.Uint32(message); got != kind {
			return nil, errOrder("message %d instead of %d", got, kind)
		}
		return message[4:], nil
	}
	say := func(kind uint32, at int, value uint32) error {
		message := make([]byte, classicBytes)
		le.PutUint32(message, kind)
		if at > 0 {
			le.PutUint32(message[at:], value)
		}
		_, err := s.conn.Write(message)
		return err
	}
	body, err := expect(43)
	if err != nil {
		return err
	}
	if string(bytes.TrimRight(body, "\x00")) != tag {
		return errOrder("another tag than THUMBPRINT_SHA2 had")
	}
	if _, err = expect(33); err != nil {
		return err
	}
	if body, err = expect(51); err != nil {
		return err
	}
	if version := le.Uint32(body); version < 3 || version > 12 {
		return errOrder("version %d", version)
	}
	if err = say(36, 16, 1); err != nil {
		return err
	}
	if err = say(51, 4, 11); err != nil {
		return err
	}
	if body, err = expect(54); err != nil {
		return err
	}
	name, purpose := le.Uint32(body), le.Uint32(body[4:])
	if name > 64 || purpose > 64 {
		return errOrder("names of %d and %d bytes", name, purpose)
	}
	texts := make([]byte, name+purpose)
	if _, err = io.ReadFull(s.conn, texts); err != nil {
		return err
	}
	if string(texts[name:]) != "nbdmode" {
		return errOrder("a client that wants %q", texts[name:])
	}
	if body, err = expect(55); err != nil {
		return err
	}
	if le.Uint32(body) != 3 {
		return errOrder("features %d", le.Uint32(body))
	}
	if _, err = expect(52); err != nil {
		return err
	}
	return say(52, 0, 0)
}

// answer sends one record and what trails it.
func (s *nfcAIO) answer(kind, number uint32, payload []byte, trailer []byte) error {
	record := make([]byte, 16, 16+len(payload)+len(trailer))
	le.PutUint32(record, aioMagic)
	le.PutUint32(record[4:], kind)
	le.PutUint32(record[8:], uint32(len(payload)))
	le.PutUint32(record[12:], number)
	record = append(append(record, payload...), trailer...)
	s.sending.Lock()
	defer s.sending.Unlock()
	if kind == aioIO && len(trailer) > 0 {
		switch s.trouble {
		case "cut":
			_, _ = s.conn.Write(record[:len(record)/2])
			return io.ErrUnexpectedEOF
		case "lie":
			le.PutUint32(record[16+36:], 1<<31)
		}
	}
	_, err := s.conn.Write(record)
	return err
}

var answerBytes = map[uint32]int{
	aioOpen: 16, aioSockOpts: 12, aioPool: 4, aioOpenFile: 60, aioDDBGet: 16, aioMap: 48, aioIO: 44, aioCloseFile: 8, aioEnd: 4,
}

// refuse answers with an error record, and then with the answer itself, whose status says so as well.
func (s *nfcAIO) refuse(kind, number uint32, code int, format string, args ...any) error {
	text := []byte(fmt.Sprintf(format, args...))
	payload := make([]byte, 16)
	le.PutUint64(payload, uint64(code))
	le.PutUint32(payload[12:], uint32(len(text)))
	if err := s.answer(aioError, number, payload, text); err != nil {
		return err
	}
	status := make([]byte, answerBytes[kind])
	if len(status) >= 44 {
		le.PutUint64(status, uint64(code))
	}
	return s.answer(kind, number, status, nil)
}

// meet lets a fault of `vrepl lab set` happen. done: the call has ended, with an error on the wire or of the session.
func (s *nfcAIO) meet(op, kind, number uint32) (done bool, err error) {
	f := s.lab.library.take(op, s.vmName, s.mode)
	time.Sleep(f.freeze)
	switch {
	case f.crash:
		killPeer(s.bare)
		return true, io.EOF
	case f.lost:
		return true, fmt.Errorf("the connection is lost, as a rule wants it")
	case f.code != 0:
		return true, s.refuse(kind, number, int(f.code), "as a rule of the lab wants it")
	}
	return false, nil
}

// serve takes records until the session is closed.
func (s *nfcAIO) serve() error {
	var expected uint32
	for {
		header := make([]byte, 16)
		if _, err := io.ReadFull(s.conn, header); err != nil {
			return err
		}
		kind, size, number := le.Uint32(header[4:]), le.Uint32(header[8:]), le.Uint32(header[12:])
		if le.Uint32(header) != aioMagic {
			return errOrder("a record begins with %#x", le.Uint32(header))
		}
		if size > 64 {
			return errOrder("a payload of %d bytes", size)
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(s.conn, payload); err != nil {
			return err
		}
		// The fragments of a write have one number; all else counts up.
		if number != expected && !(kind == aioIO && number+1 == expected) {
			return errOrder("record number %d instead of %d", number, expected)
		}
		expected = number + 1
		if kind != aioOpen && s.budget == 0 {
			return errOrder("a record of type %d before OPEN_SESSION", kind)
		}
		ended, err := s.record(kind, number, payload)
		if ended || err != nil {
			return err
		}
	}
}

func (s *nfcAIO) record(kind, number uint32, payload []byte) (ended bool, err error) {
	want := map[uint32][]int{
		aioOpen: {16}, aioSockOpts: {12}, aioPool: {4}, aioOpenFile: {60}, aioDDBGet: {16}, aioMap: {48}, aioIO: {44},
		aioCloseFile: {8, 16}, aioEnd: {4, 16}, // two clients that work send different lengths
	}[kind]
	fits := false
	for _, size := range want {
		fits = fits || size == len(payload)
	}
	if !fits {
		return false, errOrder("a record of type %d with %d bytes", kind, len(payload))
	}
	switch kind {
	case aioOpen:
		return false, s.openSession(number, payload)
	case aioSockOpts:
		reply := make([]byte, 12)
		le.PutUint32(reply, 1675000)
		le.PutUint32(reply[4:], 1675000)
		le.PutUint32(reply[8:], 1)
		return false, s.answer(kind, number, reply, nil)
	case aioPool:
		return false, s.answer(kind, number, payload, nil)
	case aioOpenFile:
		return false, s.openFile(number, payload)
	case aioEnd:
		if s.file != nil {
			return false, errOrder("the session ends with an open file")
		}
		s.release()
		return true, s.answer(kind, number, make([]byte, 4), nil)
	}
	if s.file == nil {
		return false, errOrder("a record of type %d without an open file", kind)
	}
	if le.Uint64(payload) != s.file.id {
		return false, errOrder("a handle that is not open")
	}
	switch kind {
	case aioIO:
		return false, s.io(number, payload)
	case aioMap:
		return false, s.allocated(number, payload)
	case aioDDBGet:
		return false, s.database(number, payload)
	default:
		return false, s.closeFile(number)
	}
}

func (s *nfcAIO) openSession(number uint32, payload []byte) error {
	if s.budget != 0 {
		return errOrder("a second OPEN_SESSION")
	}
	s.piece, s.budget = int64(le.Uint32(payload[4:])), int64(le.Uint32(payload[8:]))
	if s.piece == 0 {
		s.piece, s.budget = 65536, 4
	}
	s.budget *= s.piece
	if done, err := s.meet(opConnect, aioOpen, number); done {
		return err
	}
	if s.piece > largestBuffer || s.piece%65536 != 0 || s.budget <= 0 || s.budget > 64*mib {
		s.budget = max(s.budget, 1)
		return s.refuse(aioOpen, number, 3, "buffers of %d bytes", s.piece)
	}
	if !s.host.reserve(s.budget / 1024) {
		return s.refuse(aioOpen, number, 5, "NFC error 5: failed to allocate the requested %d bytes", s.budget)
	}
	s.reserved = s.budget / 1024
	s.lab.mu.Lock()
	limit := s.lab.settings.VCenterConnections
	full := limit > 0 && s.lab.open >= limit
	if !full {
		s.lab.open++
		s.lab.peak = max(s.lab.peak, s.lab.open)
		s.counted = true
	}
	s.lab.mu.Unlock()
	if full {
		return s.refuse(aioOpen, number, vixNoConnection, "too many connections: %d", limit)
	}
	return s.answer(aioOpen, number, make([]byte, 16), nil)
}

func (s *nfcAIO) openFile(number uint32, payload []byte) error {
	length, kind, flags := le.Uint32(payload), le.Uint32(payload[16:]), le.Uint32(payload[20:])
	if s.file != nil {
		return errOrder("a second OPEN_FILE")
	}
	if length > largestPathName || kind != 2 || (flags != 0x1e && flags != 0x1a) {
		return errOrder("OPEN_FILE of type %d with flags %#x and a path of %d bytes", kind, flags, length)
	}
	path := make([]byte, length)
	if _, err := io.ReadFull(s.conn, path); err != nil {
		return err
	}
	file, fault := s.lab.openNFC(s, string(path), flags == 0x1a)
	if fault != nil {
		return s.refuse(aioOpenFile, number, fault.code, "%s", fault.text)
	}
	s.file = file
	if done, err := s.meet(opOpen, aioOpenFile, number); done {
		file.abandon()
		s.lab.drop(file.handle)
		s.file = nil
		return err
	}
	reply := make([]byte, 60)
	le.PutUint64(reply[8:], file.id)
	le.PutUint32(reply[16:], 2)
	le.PutUint32(reply[20:], flags)
	le.PutUint64(reply[28:], uint64(file.handle.links[0].capacity))
	le.PutUint32(reply[36:], 512)
	le.PutUint32(reply[40:], uint32(max(file.handle.links[0].capacity/512/255/63, 1)))
	le.PutUint32(reply[44:], 255)
	le.PutUint32(reply[48:], 63)
	return s.answer(aioOpenFile, number, reply, nil)
}

func (s *nfcAIO) database(number uint32, payload []byte) error {
	length := le.Uint32(payload[8:])
	if length > 256 {
		return errOrder("a key of %d bytes", length)
	}
	key := make([]byte, length)
	if _, err := io.ReadFull(s.conn, key); err != nil {
		return err
	}
	value := map[string]string{"uuid": s.file.handle.links[0].uuid, "adapterType": "lsilogic"}[string(key)]
	reply := make([]byte, 16)
	le.PutUint32(reply[12:], uint32(len(value)))
	return s.answer(aioDDBGet, number, reply, []byte(value))
}

func (s *nfcAIO) closeFile(number uint32) error {
	s.working.Wait() // what was asked before is answered before
	for _, op := range []uint32{opFlush, opClose} {
		if done, err := s.meet(op, aioCloseFile, number); done {
			return err
		}
	}
	file := s.file
	if err := file.close(); err != nil {
		return s.refuse(aioCloseFile, number, vixFail, "%v", err)
	}
	s.file = nil
	s.lab.drop(file.handle)
	return s.answer(aioCloseFile, number, make([]byte, 8), nil)
}
