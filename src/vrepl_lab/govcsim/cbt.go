package main

import (
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const ctkHeader = 64

// tracker is the change-tracking file of one virtual disk (docs/lab-internals.md section 2).
type tracker struct {
	file      string
	blockSize int64
	capacity  int64
	uuid      [16]byte
}

// kept is the table as it was when the current epoch began: what power loss falls back to.
func (t *tracker) kept() string { return strings.TrimSuffix(t.file, ".bin") + "-kept.bin" }

func (t *tracker) remove() {
	_ = os.Remove(t.file)
	_ = os.Remove(t.kept())
}

// forget drops what was tracked since the current epoch began, as a host does that loses its power: it wrote the table
// to disk last when it made a snapshot. The epoch itself stays.
func (t *tracker) forget() error {
	head := make([]byte, ctkHeader)
	f, err := os.OpenFile(t.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.ReadAt(head, 0); err != nil {
		return err
	}
	table, err := os.ReadFile(t.kept())
	if os.IsNotExist(err) {
		table, err = make([]byte, ctkHeader+4*t.blocks()), nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(table[ctkHeader:], ctkHeader)
	return err
}

func (t *tracker) blocks() int64 { return (t.capacity + t.blockSize - 1) / t.blockSize }

// uuidText is the uuid part of a change ID as vSphere prints it: "52 d1 … -…" in hex pairs.
func (t *tracker) uuidText() string {
	pairs := make([]string, 16)
	for i, b := range t.uuid {
		pairs[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(pairs[:8], " ") + "-" + strings.Join(pairs[8:], " ")
}

// startTracker makes a fresh table: epoch 1, no block ever written.
func startTracker(file string, capacity, blockSize int64, seed string) (*tracker, error) {
	t := &tracker{file: file, blockSize: blockSize, capacity: capacity}
	sum := sha1.Sum([]byte(seed))
	copy(t.uuid[:], sum[:16])
	return t, t.reset(seed)
}

// reset gives the table a new uuid and forgets every change. The file is emptied in place: others have it mapped.
func (t *tracker) reset(seed string) error {
	sum := sha1.Sum([]byte(seed))
	copy(t.uuid[:], sum[:16])
	head := make([]byte, ctkHeader)
	copy(head, "VRLABCTK")
	binary.LittleEndian.PutUint32(head[8:], 1)
	binary.LittleEndian.PutUint32(head[12:], uint32(t.blockSize))
	binary.LittleEndian.PutUint64(head[16:], 1)
	binary.LittleEndian.PutUint64(head[24:], uint64(t.blocks()))
	copy(head[32:], t.uuid[:])
	f, err := os.OpenFile(t.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(ctkHeader + 4*t.blocks()); err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, 4*t.blocks()), ctkHeader); err != nil {
		return err
	}
	_ = os.Remove(t.kept())
	_, err = f.WriteAt(head, 0)
	return err
}

func (t *tracker) epoch() (uint64, error) {
	f, err := os.Open(t.file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], 16); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// touch records a write before its data is stored.
func (t *tracker) touch(offset, length int64) error {
	if t == nil || length <= 0 {
		return nil
	}
	epoch, err := t.epoch()
	if err != nil {
		return err
	}
	first, last := offset/t.blockSize, (offset+length-1)/t.blockSize
	marks := make([]byte, 4*(last-first+1))
	for i := 0; i < len(marks); i += 4 {
		binary.LittleEndian.PutUint32(marks[i:], uint32(epoch))
	}
	f, err := os.OpenFile(t.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(marks, ctkHeader+4*first)
	return err
}

func (t *tracker) changeID() (string, error) {
	epoch, err := t.epoch()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s/%d", t.uuidText(), epoch), nil
}

// freeze copies the table for a snapshot, then starts the next epoch. It returns the snapshot's change ID.
func (t *tracker) freeze(copyTo string) (string, error) {
	id, err := t.changeID()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(t.file)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(copyTo, data, 0o600); err != nil {
		return "", err
	}
	_ = os.Remove(t.kept())
	if err := os.Link(copyTo, t.kept()); err != nil { // it outlives the snapshot's own copy
		return "", err
	}
	var next [8]byte
	binary.LittleEndian.PutUint64(next[:], binary.LittleEndian.Uint64(data[16:])+1)
	f, err := os.OpenFile(t.file, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = f.WriteAt(next[:], 16)
	return id, err
}

// extent is a range of bytes.
type extent struct{ start, length int64 }

// changedSince lists the blocks of a table (a file in the tracker's format) whose last change is later than an epoch.
func changedSince(file, uuid string, since uint64) ([]extent, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	t := tracker{blockSize: int64(binary.LittleEndian.Uint32(data[12:]))}
	copy(t.uuid[:], data[32:48])
	if t.uuidText() != uuid {
		return nil, fmt.Errorf("the change ID belongs to another table")
	}
	if since > binary.LittleEndian.Uint64(data[16:]) {
		return nil, fmt.Errorf("the change ID is from the future of this table")
	}
	var areas []extent
	blocks := int64(binary.LittleEndian.Uint64(data[24:]))
	for i := int64(0); i < blocks; i++ {
		if uint64(binary.LittleEndian.Uint32(data[ctkHeader+4*i:])) > since {
			areas = appendExtent(areas, extent{i * t.blockSize, t.blockSize})
		}
	}
	return areas, nil
}

// appendExtent adds an extent that starts at or after the end of the last one, merging neighbours.
func appendExtent(all []extent, next extent) []extent {
	if n := len(all); n > 0 && all[n-1].start+all[n-1].length == next.start {
		all[n-1].length += next.length
		return all
	}
	return append(all, next)
}

// parseChangeID splits "uuid/epoch".
func parseChangeID(id string) (uuid string, epoch uint64, ok bool) {
	at := strings.LastIndex(id, "/")
	if at < 0 {
		return "", 0, false
	}
	epoch, err := strconv.ParseUint(id[at+1:], 10, 64)
	return id[:at], epoch, err == nil
}
