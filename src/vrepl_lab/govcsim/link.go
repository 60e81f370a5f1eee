package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/vmdk"
)

// grainSize is the unit of a link's map: 64 KiB, in bytes.
const grainSize = 65536

// What a byte of a grains map says (docs/lab-internals.md section 2).
const (
	grainHole     = 0 // ask the parent link
	grainPresent  = 1 // the bytes are in the flat file
	grainUnmapped = 2 // zeros, whatever the parent holds
)

const (
	seekData  = 3
	seekHole  = 4
	punchHole = 0x01 | 0x02 // FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
)

// link is one vmdk file of a virtual disk: the base or a delta over its parent.
type link struct {
	dsPath   string // "[datastore] folder/NAME.vmdk"
	stem     string // absolute path without ".vmdk"
	capacity int64  // bytes
	thin     bool   // delta links are always thin
	parent   *link
	owner    string // moref value of the VM that made it
	uuid     string // of the virtual disk, the same along the chain
	released bool   // the snapshot that froze it is gone; guarded by Lab.mu
	broken   string // why it cannot be opened: its parent was changed, or is gone; guarded by Lab.mu
}

func (l *link) flat() string       { return l.stem + "-flat.vmdk" }
func (l *link) grainsMap() string  { return l.stem + "-grains.map" }
func (l *link) descriptor() string { return l.stem + ".vmdk" }
func (l *link) grains() int64      { return (l.capacity + grainSize - 1) / grainSize }

// chain lists the links from this one down to the base.
func (l *link) chain() []*link {
	var all []*link
	for at := l; at != nil; at = at.parent {
		all = append(all, at)
	}
	return all
}

func (l *link) base() *link {
	for l.parent != nil {
		l = l.parent
	}
	return l
}

// create makes the flat file and the map, both empty, and the descriptor; or brings those that are there to the capacity.
// Every call counts here: a lab may have thousands of disks.
func (l *link) create() error {
	for name, size := range map[string]int64{l.flat(): l.capacity, l.grainsMap(): l.grains()} {
		err := os.Truncate(name, size)
		if os.IsNotExist(err) {
			var f *os.File
			if f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
				return err
			}
			err = f.Truncate(size)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
		}
		if err != nil {
			return err
		}
	}
	return l.writeDescriptor()
}

func (l *link) writeDescriptor() error {
	extent := vmdk.Extent{Size: l.capacity / 512, Info: path.Base(l.flat())}
	if l.parent != nil {
		extent.Type = "VMFSSPARSE"
	}
	desc := vmdk.NewDescriptor(extent)
	desc.DDB["uuid"] = l.uuid
	f, err := os.Create(l.descriptor())
	if err != nil {
		return err
	}
	err = desc.Write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (l *link) remove() error {
	var errs []error
	for _, name := range []string{l.descriptor(), l.flat(), l.grainsMap()} {
		if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// rename moves the three files to another stem.
func (l *link) rename(stem string) error {
	for _, suffix := range []string{".vmdk", "-flat.vmdk", "-grains.map"} {
		if err := os.Rename(l.stem+suffix, stem+suffix); err != nil {
			return err
		}
	}
	l.stem = stem
	return nil
}

// extend grows a link; the new part reads as zeros.
func (l *link) extend(capacity int64) error {
	l.capacity = capacity
	return l.create()
}

func (l *link) readMap() ([]byte, error) {
	m, err := os.ReadFile(l.grainsMap())
	if err != nil {
		return nil, err
	}
	if int64(len(m)) != l.grains() {
		return nil, fmt.Errorf("%s: %d grains, expected %d", l.grainsMap(), len(m), l.grains())
	}
	return m, nil
}

// allocated is the number of bytes that the link takes on its datastore.
func (l *link) allocated() int64 {
	if l.parent == nil && !l.thin {
		return l.capacity
	}
	m, err := l.readMap()
	if err != nil {
		return 0
	}
	var n int64
	for _, b := range m {
		if b == grainPresent {
			n++
		}
	}
	return n * grainSize
}

var deltaSuffix = regexp.MustCompile(`-\d{6}$`)

// childName is the first free name for a delta over this link: NAME-000001, NAME-000002, and so on.
func (l *link) childName(taken func(dsPath string) bool) (dsPath, stem string) {
	folder := path.Dir(l.stem)
	name := deltaSuffix.ReplaceAllString(path.Base(l.stem), "")
	prefix := l.dsPath[:strings.LastIndexAny(l.dsPath, "/ ")+1]
	for n := 1; ; n++ {
		file := fmt.Sprintf("%s-%06d", name, n)
		dsPath, stem = prefix+file+".vmdk", path.Join(folder, file)
		if taken(dsPath) {
			continue
		}
		if _, err := os.Lstat(stem + ".vmdk"); os.IsNotExist(err) {
			return dsPath, stem
		}
	}
}
