package main

import (
	"errors"
	"io"
	"os"
	"syscall"
)

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
