package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/vmdk"
)

// grainSize is the unit of a link's map: 64 KiB, in bytes.
const grainSize = 65536

// What a byte of a grains map says (docs/lab.md section 2).
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

// openLink holds the files of a chain for the length of one operation.
type openLink struct {
	*link
	flat   *os.File
	marks  []byte // the whole map
	file   *os.File
	parent *openLink
}

func (l *link) open(write bool) (*openLink, error) {
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	o := &openLink{link: l}
	var err error
	if o.marks, err = l.readMap(); err != nil {
		return nil, err
	}
	if o.flat, err = os.OpenFile(l.flat(), mode, 0); err != nil {
		return nil, err
	}
	if o.file, err = os.OpenFile(l.grainsMap(), mode, 0); err != nil {
		_ = o.flat.Close()
		return nil, err
	}
	if l.parent != nil {
		if o.parent, err = l.parent.open(false); err != nil {
			o.close()
			return nil, err
		}
	}
	return o, nil
}

func (o *openLink) close() {
	if o == nil {
		return
	}
	_ = o.flat.Close()
	_ = o.file.Close()
	o.parent.close()
}

// runs calls f for each run of equal map bytes within [offset, offset+length); positions in bytes.
func runs(marks []byte, offset, length int64, f func(mark byte, offset, length int64) error) error {
	end := offset + length
	for at := offset; at < end; {
		grain := at / grainSize
		next := grain + 1
		for next < int64(len(marks)) && next*grainSize < end && marks[next] == marks[grain] {
			next++
		}
		stop := min(next*grainSize, end)
		if err := f(marks[grain], at, stop-at); err != nil {
			return err
		}
		at = stop
	}
	return nil
}

// read fills buf with what the guest sees at offset.
func (o *openLink) read(buf []byte, offset int64) error {
	return runs(o.marks, offset, int64(len(buf)), func(mark byte, at, length int64) error {
		part := buf[at-offset : at-offset+length]
		if mark == grainPresent {
			_, err := o.flat.ReadAt(part, at)
			return err
		}
		if mark == grainHole && o.parent != nil {
			return o.parent.read(part, at)
		}
		clear(part)
		return nil
	})
}

func (o *openLink) mark(first, last int64, value byte) error {
	part := o.marks[first : last+1]
	for i := range part {
		part[i] = value
	}
	_, err := o.file.WriteAt(part, first)
	return err
}

// copyUp makes a grain present with the content that it shows now.
func (o *openLink) copyUp(grain int64) error {
	if o.marks[grain] == grainPresent {
		return nil
	}
	start := grain * grainSize
	buf := make([]byte, min(grainSize, o.capacity-start))
	if err := o.read(buf, start); err != nil {
		return err
	}
	if _, err := o.flat.WriteAt(buf, start); err != nil {
		return err
	}
	return o.mark(grain, grain, grainPresent)
}

// write stores data; partly covered grains are copied up first.
func (o *openLink) write(data []byte, offset int64) error {
	if len(data) == 0 {
		return nil
	}
	end := offset + int64(len(data))
	first, last := offset/grainSize, (end-1)/grainSize
	if offset%grainSize != 0 || (first == last && end%grainSize != 0 && end != o.capacity) {
		if err := o.copyUp(first); err != nil {
			return err
		}
	}
	if last != first && end%grainSize != 0 && end != o.capacity {
		if err := o.copyUp(last); err != nil {
			return err
		}
	}
	if _, err := o.flat.WriteAt(data, offset); err != nil {
		return err
	}
	return o.mark(first, last, grainPresent)
}

// unmap does what a guest's TRIM does: whole grains are given back, the rest is zeroed.
func (o *openLink) unmap(offset, length int64) error {
	end := offset + length
	first := (offset + grainSize - 1) / grainSize
	last := end / grainSize // exclusive
	if end == o.capacity {
		last = o.grains()
	}
	if first >= last {
		return o.write(make([]byte, length), offset)
	}
	if head := first*grainSize - offset; head > 0 {
		if err := o.write(make([]byte, head), offset); err != nil {
			return err
		}
	}
	if tail := end - last*grainSize; tail > 0 {
		if err := o.write(make([]byte, tail), last*grainSize); err != nil {
			return err
		}
	}
	value := byte(grainHole)
	if o.parent != nil {
		value = grainUnmapped
	}
	if err := o.mark(first, last-1, value); err != nil {
		return err
	}
	return o.punch(first*grainSize, min(last*grainSize, o.capacity)-first*grainSize)
}

func (o *openLink) punch(offset, length int64) error {
	err := syscall.Fallocate(int(o.flat.Fd()), punchHole, offset, length)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return nil // only space is lost: the map decides what is read
	}
	return err
}

// copyRange copies bytes between files at the same offset; io.Copy uses copy_file_range where it can.
func copyRange(dst, src *os.File, offset, length int64) error {
	if _, err := dst.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	if _, err := src.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(dst, src, length)
	return err
}

// mergeInto commits the grains of a child link into its parent: the parent then shows what the child showed.
func mergeInto(parent, child *link) error {
	c, err := child.open(false)
	if err != nil {
		return err
	}
	defer c.close()
	p, err := parent.open(true)
	if err != nil {
		return err
	}
	defer p.close()
	return runs(c.marks, 0, child.capacity, func(mark byte, at, length int64) error {
		first, last := at/grainSize, (at+length-1)/grainSize
		switch mark {
		case grainPresent:
			if err := copyRange(p.flat, c.flat, at, length); err != nil {
				return err
			}
			return p.mark(first, last, grainPresent)
		case grainUnmapped:
			value := byte(grainHole)
			if parent.parent != nil {
				value = grainUnmapped
			}
			if err := p.mark(first, last, value); err != nil {
				return err
			}
			return p.punch(at, length)
		}
		return nil
	})
}

// copyChain makes dst, an empty base link, show what src shows; only allocated grains are copied.
func copyChain(dst, src *link) error {
	d, err := dst.open(true)
	if err != nil {
		return err
	}
	defer d.close()
	return eachAllocated(src, func(from *os.File, at, length int64) error {
		if err := copyRange(d.flat, from, at, length); err != nil {
			return err
		}
		return d.mark(at/grainSize, (at+length-1)/grainSize, grainPresent)
	})
}

// eachAllocated calls f for every run of grains that the chain holds, with the flat file that holds it.
func eachAllocated(l *link, f func(flat *os.File, offset, length int64) error) error {
	o, err := l.open(false)
	if err != nil {
		return err
	}
	defer o.close()
	var walk func(at *openLink, offset, length int64) error
	walk = func(at *openLink, offset, length int64) error {
		return runs(at.marks, offset, length, func(mark byte, offset, length int64) error {
			if mark == grainPresent {
				return f(at.flat, offset, length)
			}
			if mark == grainHole && at.parent != nil {
				return walk(at.parent, offset, length)
			}
			return nil
		})
	}
	return walk(o, 0, l.capacity)
}

// export writes the raw disk, sparse, to a new file.
func export(l *link, name string) error {
	out, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = out.Truncate(l.capacity)
	if err == nil {
		err = eachAllocated(l, func(from *os.File, offset, length int64) error {
			return copyRange(out, from, offset, length)
		})
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// importImage puts a raw image in place as the content of an empty base link and derives the map from its holes.
func (l *link) importImage(image string) error {
	if err := os.Rename(image, l.flat()); err != nil {
		if !errors.Is(err, syscall.EXDEV) {
			return err
		}
		if err := copySparse(l.flat(), image); err != nil {
			return err
		}
	}
	if err := os.Truncate(l.flat(), l.capacity); err != nil {
		return err
	}
	f, err := os.Open(l.flat())
	if err != nil {
		return err
	}
	defer f.Close()
	marks := make([]byte, l.grains())
	err = eachData(f, l.capacity, func(start, end int64) error {
		for g := start / grainSize; g <= (end-1)/grainSize; g++ {
			marks[g] = grainPresent
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.WriteFile(l.grainsMap(), marks, 0o600)
}

// eachData calls f for each extent of a sparse file that holds data.
func eachData(f *os.File, size int64, call func(start, end int64) error) error {
	for at := int64(0); at < size; {
		start, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if err := call(start, min(end, size)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func copySparse(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = dst.Truncate(info.Size())
	if err == nil {
		err = eachData(src, info.Size(), func(start, end int64) error {
			return copyRange(dst, src, start, end-start)
		})
	}
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	return err
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
