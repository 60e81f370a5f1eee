package main

import (
	"bytes"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
)

// stack makes a chain of links, base first, of a disk whose last grain is short.
func stack(t *testing.T, capacity int64, n int) []*link {
	t.Helper()
	dir := t.TempDir()
	var all []*link
	for i := 0; i < n; i++ {
		name := filepath.Join(dir, string(rune('a'+i)))
		at := &link{dsPath: "[ds] vm/" + filepath.Base(name) + ".vmdk", stem: name, capacity: capacity, thin: true}
		if i > 0 {
			at.parent = all[i-1]
		}
		if err := at.create(); err != nil {
			t.Fatal(err)
		}
		all = append(all, at)
	}
	return all
}

func seen(t *testing.T, at *link) []byte {
	t.Helper()
	o, err := at.open(false)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	buf := make([]byte, at.capacity)
	if err := o.read(buf, 0); err != nil {
		t.Fatal(err)
	}
	return buf
}

// change writes and unmaps at random, in the link and in the model of what the guest sees.
func change(t *testing.T, rnd *rand.Rand, at *link, model []byte) {
	t.Helper()
	o, err := at.open(true)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	offset := rnd.Int63n(at.capacity)
	length := min(1+rnd.Int63n(3*grainSize), at.capacity-offset)
	part := make([]byte, length)
	if rnd.Intn(3) == 0 {
		err = o.unmap(offset, length)
	} else {
		rnd.Read(part)
		err = o.write(part, offset)
	}
	if err != nil {
		t.Fatal(err)
	}
	copy(model[offset:], part)
}

func TestChainShowsWhatWasWrittenAndMergingKeepsIt(t *testing.T) {
	for seed := int64(0); seed < 30; seed++ {
		rnd := rand.New(rand.NewSource(seed))
		capacity := int64(7*grainSize + 512)
		all := stack(t, capacity, 3)
		model := make([]byte, capacity)
		var states [][]byte
		for _, at := range all {
			for i := 0; i < 4; i++ {
				change(t, rnd, at, model)
			}
			states = append(states, bytes.Clone(model))
		}
		for i, at := range all {
			if !bytes.Equal(seen(t, at), states[i]) {
				t.Fatalf("seed %d: link %d shows something else", seed, i)
			}
		}
		raw := filepath.Join(t.TempDir(), "raw")
		if err := export(all[2], raw); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(raw); !bytes.Equal(got, model) {
			t.Fatalf("seed %d: the export differs", seed)
		}
		// The middle link's snapshot goes: its child is committed into it.
		if err := mergeInto(all[1], all[2]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(seen(t, all[1]), model) || !bytes.Equal(seen(t, all[0]), states[0]) {
			t.Fatalf("seed %d: merging changed what is seen", seed)
		}
		if err := mergeInto(all[0], all[1]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(seen(t, all[0]), model) {
			t.Fatalf("seed %d: merging into the base changed what is seen", seed)
		}
		marks, _ := all[0].readMap()
		if bytes.IndexByte(marks, grainUnmapped) >= 0 {
			t.Fatalf("seed %d: a base has nothing to hide from, but says unmapped", seed)
		}
	}
}

func TestTrackerReportsWhatChangedSinceAnEpoch(t *testing.T) {
	dir := t.TempDir()
	tr, err := startTracker(filepath.Join(dir, "d-ctk.bin"), 10*grainSize+512, grainSize, "seed")
	if err != nil {
		t.Fatal(err)
	}
	first, err := tr.freeze(filepath.Join(dir, "one"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, grainSize, 10 * grainSize} {
		if err := tr.touch(at, 512); err != nil {
			t.Fatal(err)
		}
	}
	second, err := tr.freeze(filepath.Join(dir, "two"))
	if err != nil {
		t.Fatal(err)
	}
	uuid, epoch, _ := parseChangeID(first)
	areas, err := changedSince(filepath.Join(dir, "two"), uuid, epoch)
	want := []extent{{0, 2 * grainSize}, {10 * grainSize, grainSize}}
	if err != nil || len(areas) != 2 || areas[0] != want[0] || areas[1] != want[1] {
		t.Fatalf("areas %v, %v", areas, err)
	}
	if areas, _ := changedSince(filepath.Join(dir, "one"), uuid, epoch); len(areas) != 0 {
		t.Fatalf("before the writes: %v", areas)
	}
	if _, later, _ := parseChangeID(second); later != epoch+1 {
		t.Fatalf("epochs %d, %d", epoch, later)
	}
	if _, err := changedSince(filepath.Join(dir, "one"), uuid, epoch+1); err == nil {
		t.Fatal("a change ID of a later snapshot was taken")
	}
	if err := tr.reset("other"); err != nil {
		t.Fatal(err)
	}
	if _, err := changedSince(tr.file, uuid, epoch); err == nil {
		t.Fatal("a change ID from before the reset was taken")
	}
}

func TestPagesJoinUpAndLoseNothing(t *testing.T) {
	const capacity = 100
	areas := []extent{{0, 10}, {20, 10}, {50, 1}, {90, 20}} // the last block is cut off by the capacity
	for _, limit := range []int{1, 2, 3, 4, 5} {
		for _, empty := range []bool{false, true} {
			var got []extent
			blank := 0
			for at := int64(0); at < capacity; {
				p := page(areas, at, capacity, limit, empty)
				if p.StartOffset != at || p.Length <= 0 || len(p.ChangedArea) > limit {
					t.Fatalf("limit %d: reply %+v at %d", limit, p, at)
				}
				if len(p.ChangedArea) == 0 {
					blank++
				}
				for _, a := range p.ChangedArea {
					got = append(got, extent{a.Start, a.Length})
				}
				at += p.Length
			}
			if len(got) != 4 || got[1] != (extent{20, 10}) || got[3] != (extent{90, 10}) {
				t.Fatalf("limit %d: %v", limit, got)
			}
			if empty && limit == 1 && blank != 3 {
				t.Fatalf("%d empty pages", blank)
			}
		}
	}
}
