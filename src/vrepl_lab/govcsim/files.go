package main

import (
	"cmp"
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// sizeOf is what a datastore file takes, in bytes; false if it is not there.
func (l *Lab) sizeOf(dsPath string) (int64, bool) {
	file, fault := l.folderFile(dsPath)
	if fault != nil {
		return 0, false
	}
	info, err := os.Stat(file)
	if err != nil || info.IsDir() {
		return 0, false
	}
	return info.Size(), true
}

// removeFiles deletes datastore files as far as they are there, and the folder if nothing else lies in it: strangers'
// files stay.
func (l *Lab) removeFiles(names []string, folder string) error {
	var errs []error
	for _, name := range names {
		if file, fault := l.folderFile(name); fault == nil {
			if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
				errs = append(errs, err)
			}
		}
	}
	if dir, fault := l.folderFile(folder); fault == nil && path.Base(dir) != storeOf(folder) {
		_ = os.Remove(dir) // fails unless it is empty
	}
	return errors.Join(errs...)
}

// moveFile renames a datastore file, also to another datastore, if it is there.
func (l *Lab) moveFile(from, to string) error {
	old, fault := l.folderFile(from)
	if fault != nil {
		return errors.New(faultText(fault))
	}
	new, fault := l.folderFile(to)
	if fault != nil {
		return errors.New(faultText(fault))
	}
	if err := os.Rename(old, new); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// freeFolder makes a new folder on a datastore, called NAME or NAME_1 and so on, and returns its datastore path.
func (l *Lab) freeFolder(store, name string) (string, types.BaseMethodFault) {
	for n := 0; ; n++ {
		folder := "[" + store + "] " + numbered(name, n)
		dir, fault := l.folderFile(folder)
		if fault != nil {
			return "", fault
		}
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			return folder, nil
		}
		if !os.IsExist(err) {
			return "", fileFault(folder, err.Error())
		}
	}
}

func numbered(name string, n int) string {
	if n == 0 {
		return name
	}
	return name + "_" + strconv.Itoa(n)
}

// linksUnder are the links whose files a datastore path names: a folder, a descriptor or an extent.
func (l *Lab) linksUnder(name string) []*link {
	name = strings.TrimRight(name, "/ ")
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*link
	for _, at := range l.links {
		if at.dsPath == name || flatName(at.dsPath) == name || strings.HasPrefix(at.dsPath, name+"/") ||
			(strings.HasSuffix(name, "]") && strings.HasPrefix(at.dsPath, name+" ")) {
			all = append(all, at)
		}
	}
	slices.SortFunc(all, func(a, b *link) int { return cmp.Compare(a.dsPath, b.dsPath) })
	return all
}

// isRoot tells whether a path is a datastore's own folder, which nobody removes or moves.
func isRoot(name string) bool { return strings.HasSuffix(strings.TrimRight(name, "/ ."), "]") }

// mayTouch refuses to remove or move files that somebody has open.
func (l *Lab) mayTouch(links []*link) types.BaseMethodFault {
	for _, at := range links {
		if l.held(at, "") {
			return fileLocked(at.dsPath)
		}
	}
	return nil
}

// renameLink moves the files of a link, and its place in the table. Links above it find it as before.
func (l *Lab) renameLink(at *link, dsPath string) error {
	file, fault := l.folderFile(dsPath)
	if fault != nil {
		return errors.New(faultText(fault))
	}
	if err := at.rename(strings.TrimSuffix(file, ".vmdk")); err != nil {
		return err
	}
	l.mu.Lock()
	delete(l.links, at.dsPath)
	at.dsPath = dsPath
	l.links[dsPath] = at
	l.mu.Unlock()
	return at.writeDescriptor() // it names its extent
}

// freeLink is the first of NAME.vmdk, NAME_1.vmdk, … in a folder that no disk has.
func (l *Lab) freeLink(folder, file string) string {
	stem := strings.TrimSuffix(file, ".vmdk")
	for n := 0; ; n++ {
		name := joined(folder, numbered(stem, n)+".vmdk")
		if _, there := l.sizeOf(name); !there && !l.taken(name) {
			return name
		}
	}
}

// joined puts a file into a datastore folder, which may be the root "[ds]".
func joined(folder, file string) string {
	if strings.HasSuffix(folder, "]") {
		return folder + " " + file
	}
	return folder + "/" + file
}

// orphan makes links that another VM put on one that is gone, or changed, unfit to be opened.
func (l *Lab) orphan(links []*link, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range links {
		at.broken = why
	}
}

func (l *Lab) foreignChildren(at *link, owner string) []*link {
	var all []*link
	for _, over := range l.children(at) {
		if over.owner != owner {
			all = append(all, over)
		}
	}
	return all
}

// vmLocked refuses what needs all files of a VM for itself.
func (l *Lab) vmLocked(vm *simulator.VirtualMachine, mine []*link) types.BaseMethodFault {
	for _, at := range mine {
		if l.held(at, vm.Self.Value) {
			return fileLocked(at.dsPath)
		}
	}
	return nil
}
