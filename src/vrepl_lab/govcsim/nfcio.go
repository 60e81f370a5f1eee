package main

import (
	"bytes"
	"compress/zlib"
	"io"
	"time"
)

// io is one record of type 7: a read, or a fragment of a write with its data behind it.
func (s *nfcAIO) io(number uint32, payload []byte) error {
	offset, compression := int64(le.Uint64(payload[16:])), le.Uint32(payload[12:])
	capacity := s.file.handle.links[0].capacity
	switch le.Uint32(payload[8:]) {
	case 1:
		length := int64(le.Uint64(payload[24:]))
		if int64(le.Uint32(payload[32:])) != length || int64(le.Uint32(payload[36:])) != length {
			return errOrder("a read whose lengths differ")
		}
		if length <= 0 || length > largestRead || length%512 != 0 || offset%512 != 0 {
			return s.refuse(aioIO, number, vixInvalidArg, "a read of %d bytes at %d", length, offset)
		}
		if offset < 0 || offset > capacity-length {
			return s.refuse(aioIO, number, 16000, "outside of the disk")
		}
		if compression != 0 && compression != 1 && compression != 3 {
			return s.refuse(aioIO, number, 6, "compression %d", compression)
		}
		return s.start(number, length, func() error { return s.read(number, offset, length, compression) })
	case 0:
		return s.fragment(number, offset, capacity, payload)
	}
	return errOrder("I/O of kind %d", le.Uint32(payload[8:]))
}

// fragment takes the data of a write; the last one stores it all.
func (s *nfcAIO) fragment(number uint32, offset, capacity int64, payload []byte) error {
	total, start := int64(le.Uint32(payload[24:])), int64(le.Uint32(payload[28:]))
	length, extra := int64(le.Uint32(payload[32:])), int64(le.Uint32(payload[36:]))
	if le.Uint32(payload[12:]) != 0 {
		return errOrder("a compressed write")
	}
	if length != extra || length <= 0 || length > s.piece || total > largestWrite || start+length > total {
		return errOrder("a fragment of %d bytes (%d follow) at %d of %d", length, extra, start, total)
	}
	file := s.file
	if start == 0 {
		if file.arriving != nil {
			return errOrder("a write begins within another one")
		}
		file.arriving = make([]byte, 0, total)
		file.number = number
	}
	if file.arriving == nil || file.number != number || int64(len(file.arriving)) != start || int64(cap(file.arriving)) != total {
		return errOrder("a fragment at %d of a write of which %d bytes have come", start, len(file.arriving))
	}
	file.arriving = file.arriving[:start+length]
	if _, err := io.ReadFull(s.conn, file.arriving[start:]); err != nil {
		return err
	}
	if start+length < total {
		return nil
	}
	data := file.arriving
	file.arriving = nil
	switch {
	case !file.handle.write:
		return s.refuse(aioIO, number, 11, "the disk is open for reading")
	case offset%512 != 0 || total%512 != 0:
		return s.refuse(aioIO, number, vixInvalidArg, "a write of %d bytes at %d", total, offset)
	case offset < 0 || offset > capacity-total:
		return s.refuse(aioIO, number, 16000, "outside of the disk")
	}
	return s.start(number, total, func() error { return s.write(number, offset, data) })
}

// start works on a call beside the others, as long as what is in flight stays within the session's buffers.
func (s *nfcAIO) start(number uint32, length int64, work func() error) error {
	s.mu.Lock()
	if s.flying > 0 && s.flying+length > s.budget {
		s.mu.Unlock()
		return s.refuse(aioIO, number, 5, "NFC error 5: failed to allocate the requested %d bytes", length)
	}
	s.flying += length
	s.mu.Unlock()
	s.working.Add(1)
	go func() {
		defer s.working.Done()
		if err := work(); err != nil {
			_ = s.bare.Close()
		}
	}()
	return nil
}

// arrived ends a call's part in what is in flight: before its answer goes out, for then the next one may come.
func (s *nfcAIO) arrived(length int64) {
	s.mu.Lock()
	s.flying -= length
	s.mu.Unlock()
}

// pace waits as long as latency and bandwidth of `vrepl lab set` want it.
func (s *nfcAIO) pace(length int64) {
	until := time.Now().Add(s.lab.library.latency())
	if rate := s.lab.library.bandwidth(); rate > 0 {
		s.mu.Lock()
		begin := s.nextFree
		if now := time.Now(); begin.Before(now) {
			begin = now
		}
		s.nextFree = begin.Add(time.Duration(float64(length) / float64(rate) * float64(time.Second)))
		if s.nextFree.After(until) {
			until = s.nextFree
		}
		s.mu.Unlock()
	}
	time.Sleep(time.Until(until))
}

func (s *nfcAIO) read(number uint32, offset, length int64, compression uint32) error {
	if done, err := s.meet(opRead, aioIO, number); done {
		s.arrived(length)
		return err
	}
	s.pace(length)
	data := make([]byte, length)
	if err := s.file.read(data, offset); err != nil {
		s.arrived(length)
		return s.refuse(aioIO, number, vixFail, "%v", err)
	}
	var starts []int64
	for at := int64(0); at < length; at += s.piece {
		starts = append(starts, at)
	}
	s.mu.Lock()
	s.reversed = !s.reversed
	backwards := s.reversed // fragments are not always delivered in order (nfc_read.md)
	s.mu.Unlock()
	for i := range starts {
		at := starts[i]
		if backwards {
			at = starts[len(starts)-1-i]
		}
		if i == len(starts)-1 {
			s.arrived(length)
		}
		part := data[at:min(at+s.piece, length)]
		packed, how := pack(part, compression)
		payload := make([]byte, 44)
		le.PutUint32(payload[8:], 1)
		le.PutUint32(payload[12:], how)
		le.PutUint64(payload[16:], uint64(offset))
		le.PutUint32(payload[24:], uint32(length))
		le.PutUint32(payload[28:], uint32(at))
		le.PutUint32(payload[32:], uint32(len(part)))
		le.PutUint32(payload[36:], uint32(len(packed)))
		if err := s.answer(aioIO, number, payload, packed); err != nil {
			return err
		}
	}
	return nil
}

func (s *nfcAIO) write(number uint32, offset int64, data []byte) error {
	length := int64(len(data))
	if done, err := s.meet(opWrite, aioIO, number); done {
		s.arrived(length)
		return err
	}
	s.pace(length)
	err := s.file.write(data, offset)
	s.arrived(length)
	if err != nil {
		return s.refuse(aioIO, number, vixFail, "%v", err)
	}
	payload := make([]byte, 44)
	le.PutUint64(payload[16:], uint64(offset))
	le.PutUint32(payload[24:], uint32(length))
	le.PutUint32(payload[32:], uint32(length))
	le.PutUint32(payload[36:], uint32(length))
	return s.answer(aioIO, number, payload, nil)
}

// pack compresses a fragment as it was asked for, and leaves one alone that does not shrink.
func pack(data []byte, how uint32) ([]byte, uint32) {
	var packed []byte
	switch how {
	case 1:
		var out bytes.Buffer
		w := zlib.NewWriter(&out)
		_, _ = w.Write(data)
		_ = w.Close()
		packed = out.Bytes()
	case 3:
		packed = skipZeros(data)
	}
	if packed == nil || len(packed) >= len(data) {
		return data, 0
	}
	return packed, how
}

// skipZeros is skipz: the length, a zero word, then start, length and bytes of each stretch between longer runs of zeros.
func skipZeros(data []byte) []byte {
	const shortest = 16 // a run of fewer zeros costs more to leave out than to send
	word := func(out []byte, n int) []byte { return le.AppendUint32(out, uint32(n)) }
	out := word(word(nil, len(data)), 0)
	for at := 0; at < len(data); {
		if data[at] == 0 {
			at++
			continue
		}
		end, zeros := at, 0
		for end < len(data) && zeros < shortest {
			if data[end] == 0 {
				zeros++
			} else {
				zeros = 0
			}
			end++
		}
		stop := end - zeros
		out = append(word(word(out, at), stop-at), data[at:stop]...)
		at = end
	}
	return out
}
