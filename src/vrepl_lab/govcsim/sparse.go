package main

import (
	"errors"
	"os"
	"syscall"
)

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
