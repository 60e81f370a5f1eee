package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// fileMethods are those of GuestFileManager.
type fileMethods struct {
	shadow
	lab *Lab
}

// transfer is a file on its way into or out of a guest; its URL serves once.
type transfer struct {
	file   string
	upload bool
	size   int64
	mode   os.FileMode
	until  time.Time
}

type transferSet struct {
	sync.Mutex
	open map[string]*transfer
}

const guestFileURL = "/guestFile"

// transferURL gives a transfer its URL. The host is *, as ESXi says it: the one that the client is connected to.
func (l *Lab) transferURL(t *transfer) string {
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	token := hex.EncodeToString(raw[:])
	t.until = time.Now().Add(10 * time.Minute)
	l.transfers.Lock()
	defer l.transfers.Unlock()
	if l.transfers.open == nil {
		l.transfers.open = map[string]*transfer{}
	}
	l.transfers.open[token] = t
	query := url.Values{"id": {fmt.Sprint(len(l.transfers.open))}, "token": {token}}
	return fmt.Sprintf("https://*:%d%s?%s", l.urlPort, guestFileURL, query.Encode())
}

// serveGuestFile is the other end of a transfer.
func (l *Lab) serveGuestFile(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	l.transfers.Lock()
	t := l.transfers.open[token]
	delete(l.transfers.open, token)
	l.transfers.Unlock()
	if t == nil || time.Now().After(t.until) {
		http.Error(w, "no such transfer", http.StatusNotFound)
		return
	}
	switch {
	case r.Method == http.MethodPut && t.upload:
		if err := receive(t, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	case r.Method == http.MethodGet && !t.upload:
		f, err := os.Open(t.file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", fmt.Sprint(t.size))
		_, _ = io.CopyN(w, f, t.size)
	default:
		http.Error(w, "not what this transfer is for", http.StatusMethodNotAllowed)
	}
}

func receive(t *transfer, from io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(from, t.size+1))
	if err != nil {
		return err
	}
	if int64(len(data)) != t.size {
		return fmt.Errorf("%d bytes were announced, %d came", t.size, len(data))
	}
	if err := os.WriteFile(t.file, data, t.mode); err != nil {
		return err
	}
	return os.Chmod(t.file, t.mode)
}

// InitiateFileTransferToGuest gives the URL that a file's content is put to.
func (m *fileMethods) InitiateFileTransferToGuest(ctx *simulator.Context, req *types.InitiateFileTransferToGuest) soap.HasFault {
	body := &methods.InitiateFileTransferToGuestBody{}
	_, _, fault := m.lab.inGuest(req.Vm, req.Auth)
	if fault == nil {
		file := m.lab.hostPath(req.Vm, req.GuestFilePath)
		info, err := os.Stat(file)
		folder, folderError := os.Stat(filepath.Dir(file))
		switch {
		case folderError != nil || !folder.IsDir():
			fault = fileNotFound(req.GuestFilePath)
		case err == nil && (info.IsDir() || !req.Overwrite):
			fault = guestError(os.ErrExist, req.GuestFilePath)
		case req.FileSize < 0:
			fault = invalidArgument("fileSize")
		default:
			t := &transfer{file: file, upload: true, size: req.FileSize, mode: 0o600}
			if a, ok := req.FileAttributes.(*types.GuestPosixFileAttributes); ok && a.Permissions != 0 {
				t.mode = os.FileMode(a.Permissions & 0o777)
			}
			body.Res = &types.InitiateFileTransferToGuestResponse{Returnval: m.lab.transferURL(t)}
		}
	}
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	}
	return body
}

// InitiateFileTransferFromGuest gives the URL that a file's content is got from.
func (m *fileMethods) InitiateFileTransferFromGuest(
	ctx *simulator.Context, req *types.InitiateFileTransferFromGuest,
) soap.HasFault {
	body := &methods.InitiateFileTransferFromGuestBody{}
	_, _, fault := m.lab.inGuest(req.Vm, req.Auth)
	if fault == nil {
		file := m.lab.hostPath(req.Vm, req.GuestFilePath)
		info, err := os.Stat(file)
		switch {
		case err != nil:
			fault = guestError(err, req.GuestFilePath)
		case info.IsDir():
			f := &types.NotAFile{}
			f.File = req.GuestFilePath
			fault = f
		default:
			body.Res = &types.InitiateFileTransferFromGuestResponse{Returnval: types.FileTransferInformation{
				Attributes: posix(info), Size: info.Size(), Url: m.lab.transferURL(&transfer{file: file, size: info.Size()}),
			}}
		}
	}
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	}
	return body
}

func posix(info os.FileInfo) *types.GuestPosixFileAttributes {
	at := info.ModTime()
	a := &types.GuestPosixFileAttributes{
		OwnerId: types.NewInt32(0), GroupId: types.NewInt32(0), Permissions: int64(info.Mode().Perm()),
	}
	a.ModificationTime, a.AccessTime = &at, &at
	return a
}

// change runs do for a guest whose login is right.
func (m *fileMethods) change(
	vm types.ManagedObjectReference, auth types.BaseGuestAuthentication, file string, do func(host string) error,
) *soap.Fault {
	_, _, fault := m.lab.inGuest(vm, auth)
	if fault == nil {
		fault = guestError(do(m.lab.hostPath(vm, file)), file)
	}
	if fault != nil {
		return simulator.Fault(faultText(fault), fault)
	}
	return nil
}

// temporary makes a file or a folder of a name that nothing else has; no folder said means /tmp.
func (m *fileMethods) temporary(
	vm types.ManagedObjectReference, auth types.BaseGuestAuthentication, folder, prefix, suffix string,
	make func(dir, pattern string) (string, error),
) (string, *soap.Fault) {
	if folder == "" {
		folder = "/tmp"
	}
	name := ""
	fault := m.change(vm, auth, folder, func(host string) error {
		made, err := make(host, prefix+"*"+suffix)
		name = path.Join(folder, filepath.Base(made))
		return err
	})
	return name, fault
}

// CreateTemporaryFileInGuest makes an empty file.
func (m *fileMethods) CreateTemporaryFileInGuest(ctx *simulator.Context, req *types.CreateTemporaryFileInGuest) soap.HasFault {
	name, fault := m.temporary(req.Vm, req.Auth, req.DirectoryPath, req.Prefix, req.Suffix,
		func(dir, pattern string) (string, error) {
			f, err := os.CreateTemp(dir, pattern)
			if err != nil {
				return "", err
			}
			return f.Name(), f.Close()
		})
	if fault != nil {
		return &methods.CreateTemporaryFileInGuestBody{Fault_: fault}
	}
	return &methods.CreateTemporaryFileInGuestBody{Res: &types.CreateTemporaryFileInGuestResponse{Returnval: name}}
}

// CreateTemporaryDirectoryInGuest makes an empty folder.
func (m *fileMethods) CreateTemporaryDirectoryInGuest(
	ctx *simulator.Context, req *types.CreateTemporaryDirectoryInGuest,
) soap.HasFault {
	name, fault := m.temporary(req.Vm, req.Auth, req.DirectoryPath, req.Prefix, req.Suffix, os.MkdirTemp)
	if fault != nil {
		return &methods.CreateTemporaryDirectoryInGuestBody{Fault_: fault}
	}
	return &methods.CreateTemporaryDirectoryInGuestBody{
		Res: &types.CreateTemporaryDirectoryInGuestResponse{Returnval: name},
	}
}

// MakeDirectoryInGuest makes a folder.
func (m *fileMethods) MakeDirectoryInGuest(ctx *simulator.Context, req *types.MakeDirectoryInGuest) soap.HasFault {
	fault := m.change(req.Vm, req.Auth, req.DirectoryPath, func(host string) error {
		if req.CreateParentDirectories {
			return os.MkdirAll(host, 0o700)
		}
		return os.Mkdir(host, 0o700)
	})
	if fault != nil {
		return &methods.MakeDirectoryInGuestBody{Fault_: fault}
	}
	return &methods.MakeDirectoryInGuestBody{Res: new(types.MakeDirectoryInGuestResponse)}
}

// DeleteFileInGuest removes a file.
func (m *fileMethods) DeleteFileInGuest(ctx *simulator.Context, req *types.DeleteFileInGuest) soap.HasFault {
	fault := m.change(req.Vm, req.Auth, req.FilePath, func(host string) error {
		if info, err := os.Stat(host); err == nil && info.IsDir() {
			return fmt.Errorf("it is a directory")
		}
		return os.Remove(host)
	})
	if fault != nil {
		return &methods.DeleteFileInGuestBody{Fault_: fault}
	}
	return &methods.DeleteFileInGuestBody{Res: new(types.DeleteFileInGuestResponse)}
}

// DeleteDirectoryInGuest removes a folder.
func (m *fileMethods) DeleteDirectoryInGuest(ctx *simulator.Context, req *types.DeleteDirectoryInGuest) soap.HasFault {
	fault := m.change(req.Vm, req.Auth, req.DirectoryPath, func(host string) error {
		if _, err := os.Stat(host); err != nil {
			return err
		}
		if req.Recursive {
			return os.RemoveAll(host)
		}
		return os.Remove(host)
	})
	if fault != nil {
		return &methods.DeleteDirectoryInGuestBody{Fault_: fault}
	}
	return &methods.DeleteDirectoryInGuestBody{Res: new(types.DeleteDirectoryInGuestResponse)}
}

// MoveFileInGuest renames a file.
func (m *fileMethods) MoveFileInGuest(ctx *simulator.Context, req *types.MoveFileInGuest) soap.HasFault {
	fault := m.change(req.Vm, req.Auth, req.SrcFilePath, func(host string) error {
		to := m.lab.hostPath(req.Vm, req.DstFilePath)
		if _, err := os.Stat(to); err == nil && !req.Overwrite {
			return os.ErrExist
		}
		return os.Rename(host, to)
	})
	if fault != nil {
		return &methods.MoveFileInGuestBody{Fault_: fault}
	}
	return &methods.MoveFileInGuestBody{Res: new(types.MoveFileInGuestResponse)}
}

// ChangeFileAttributesInGuest sets permissions.
func (m *fileMethods) ChangeFileAttributesInGuest(
	ctx *simulator.Context, req *types.ChangeFileAttributesInGuest,
) soap.HasFault {
	fault := m.change(req.Vm, req.Auth, req.GuestFilePath, func(host string) error {
		a, ok := req.FileAttributes.(*types.GuestPosixFileAttributes)
		if !ok || a.Permissions == 0 {
			return nil
		}
		return os.Chmod(host, os.FileMode(a.Permissions&0o777))
	})
	if fault != nil {
		return &methods.ChangeFileAttributesInGuestBody{Fault_: fault}
	}
	return &methods.ChangeFileAttributesInGuestBody{Res: new(types.ChangeFileAttributesInGuestResponse)}
}

// ListFilesInGuest lists a folder, or tells of one file.
func (m *fileMethods) ListFilesInGuest(ctx *simulator.Context, req *types.ListFilesInGuest) soap.HasFault {
	res := &types.ListFilesInGuestResponse{}
	fault := m.change(req.Vm, req.Auth, req.FilePath, func(host string) error {
		info, err := os.Stat(host)
		if err != nil {
			return err
		}
		found := []os.FileInfo{info}
		if info.IsDir() {
			entries, err := os.ReadDir(host)
			if err != nil {
				return err
			}
			found = nil
			for _, entry := range entries {
				if one, err := entry.Info(); err == nil {
					found = append(found, one)
				}
			}
		}
		limit := int(req.MaxResults)
		if limit == 0 {
			limit = 50
		}
		for i, one := range found[min(int(req.Index), len(found)):] {
			if i == limit {
				res.Returnval.Remaining = int32(len(found) - int(req.Index) - limit)
				break
			}
			kind := types.GuestFileTypeFile
			if one.IsDir() {
				kind = types.GuestFileTypeDirectory
			}
			if one.Mode().Type()&os.ModeSymlink != 0 {
				kind = types.GuestFileTypeSymlink
			}
			res.Returnval.Files = append(res.Returnval.Files, types.GuestFileInfo{
				Path: one.Name(), Type: string(kind), Size: one.Size(), Attributes: posix(one),
			})
		}
		return nil
	})
	if fault != nil {
		return &methods.ListFilesInGuestBody{Fault_: fault}
	}
	return &methods.ListFilesInGuestBody{Res: res}
}
