package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// defaultLogin is what guest operations take where no rule says another one.
const defaultLogin = "root:guest"

// guestRoots are the folders of a guest that are its own: DIR/<site>/guests/<moref> holds them. Everything else that a
// program names, such as /bin/sh, is this machine's.
var guestRoots = []string{"tmp", "root", "home", "opt", "etc", "var", "srv"}

// remembered is how long vSphere tells of a process that has ended.
const remembered = 5 * time.Minute

// processMethods, authMethods are those of GuestProcessManager and GuestAuthManager.
type processMethods struct {
	shadow
	lab *Lab
}

type authMethods struct {
	shadow
	lab *Lab
}

// guestAuthManager is the object behind the lab's GuestAuthManager, which govcsim has not.
type guestAuthManager struct{ mo.GuestAuthManager }

// process is a program that was started in a guest.
type process struct {
	info  guestProcessInfo
	group int // of processes on this machine
}

// guestProcessInfo is vSphere's GuestProcessInfo; govmomi's leaves an exit code of 0 out of replies.
type guestProcessInfo struct {
	Name      string     `xml:"name"`
	Pid       int64      `xml:"pid"`
	Owner     string     `xml:"owner"`
	CmdLine   string     `xml:"cmdLine"`
	StartTime time.Time  `xml:"startTime"`
	EndTime   *time.Time `xml:"endTime"`
	ExitCode  *int32     `xml:"exitCode"`
}

// ListProcessesInGuestResponse is the reply with such infos; govcsim names the element after the type.
type ListProcessesInGuestResponse struct {
	Returnval []guestProcessInfo `xml:"returnval,omitempty"`
}

type listProcessesBody struct {
	Res    *ListProcessesInGuestResponse `xml:"ListProcessesInGuestResponse,omitempty"`
	Fault_ *soap.Fault
}

// Fault is the fault that the call ended with.
func (b *listProcessesBody) Fault() *soap.Fault { return b.Fault_ }

// guestSystem is what guest operations keep of one VM.
type guestSystem struct {
	sync.Mutex
	count     int64
	processes map[int64]*process
}

// addGuestAuth completes the guest operations manager.
func (l *Lab) addGuestAuth(ctx *simulator.Context) {
	content := ctx.Map.Get(types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"}).(*simulator.ServiceInstance).Content
	if content.GuestOperationsManager == nil {
		return
	}
	manager, ok := ctx.Map.Get(*content.GuestOperationsManager).(*simulator.GuestOperationsManager)
	if !ok {
		return
	}
	auth := &guestAuthManager{}
	auth.Self = types.ManagedObjectReference{Type: "GuestAuthManager", Value: "guestOperationsAuthManager"}
	ctx.Map.Put(auth)
	ref := auth.Self
	manager.AuthManager = &ref
}

// inGuest checks that guest operations work in a VM just now, and the login.
func (l *Lab) inGuest(ref types.ManagedObjectReference, auth types.BaseGuestAuthentication) (*vmState, string, types.BaseMethodFault) {
	vm := l.vm(ref)
	if vm == nil {
		return nil, "", &types.ManagedObjectNotFound{Obj: ref}
	}
	st := l.state(ref)
	var fault types.BaseMethodFault
	name := ""
	l.context().WithLock(vm, func() {
		name = vm.Name
		switch {
		case vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn:
			fault = &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState,
			}
		case vm.Guest.ToolsRunningStatus != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning):
			fault = &types.GuestOperationsUnavailable{}
		}
	})
	if fault != nil {
		return nil, "", fault
	}
	login, ok := auth.(*types.NamePasswordAuthentication)
	if !ok {
		return nil, "", &types.InvalidArgument{InvalidProperty: "auth"}
	}
	want := defaultLogin
	if rule := l.guestOf(name).Login; rule != nil {
		want = *rule
	}
	if login.Username+":"+login.Password != want {
		f := &types.InvalidGuestLogin{}
		f.FaultMessage = localized("Failed to authenticate with the guest operating system using the supplied credentials.")
		return nil, "", f
	}
	if _, err := l.guestFolder(ref); err != nil {
		return nil, "", systemError(err)
	}
	return st, login.Username, nil
}

// guestFolder is the folder on this machine that stands for a guest's file system; it is made when it is asked for.
func (l *Lab) guestFolder(ref types.ManagedObjectReference) (string, error) {
	root := filepath.Join(l.dir, "guests", ref.Value)
	for _, name := range guestRoots {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			return "", err
		}
	}
	return root, nil
}

// hostPath is where a guest's file is on this machine.
func (l *Lab) hostPath(ref types.ManagedObjectReference, guestPath string) string {
	return filepath.Join(l.dir, "guests", ref.Value, path.Clean("/"+unixPath(guestPath)))
}

// unixPath turns C:\a\b into /a/b.
func unixPath(p string) string {
	if len(p) >= 2 && p[1] == ':' {
		p = p[2:]
	}
	return strings.ReplaceAll(p, `\`, "/")
}

var (
	ownPaths   = regexp.MustCompile(`(^|[\s"'=<>;(&|])(/(?:` + strings.Join(guestRoots, "|") + `)(?:[/\s"';)&|]|$))`)
	drivePaths = regexp.MustCompile(`(^|[\s"'=<>;(&|])[A-Za-z]:([/\\][^\s"'<>;)&|]*)`)
)

// translate makes the paths of a guest in a command line those of this machine.
func (l *Lab) translate(ref types.ManagedObjectReference, text string) string {
	root := filepath.Join(l.dir, "guests", ref.Value)
	text = ownPaths.ReplaceAllString(text, "${1}"+strings.ReplaceAll(root, "$", "$$")+"${2}")
	return drivePaths.ReplaceAllStringFunc(text, func(found string) string {
		parts := drivePaths.FindStringSubmatch(found)
		return parts[1] + root + unixPath(parts[2])
	})
}

// StartProgramInGuest runs a program of the guest's folder or of this machine, by a shell as VMware Tools do.
func (m *processMethods) StartProgramInGuest(ctx *simulator.Context, req *types.StartProgramInGuest) soap.HasFault {
	body := &methods.StartProgramInGuestBody{}
	pid, fault := m.lab.startProgram(req)
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = &types.StartProgramInGuestResponse{Returnval: pid}
	}
	return body
}

func (l *Lab) startProgram(req *types.StartProgramInGuest) (int64, types.BaseMethodFault) {
	st, user, fault := l.inGuest(req.Vm, req.Auth)
	if fault != nil {
		return 0, fault
	}
	if req.Spec == nil {
		return 0, invalidArgument("spec")
	}
	spec := req.Spec.GetGuestProgramSpec()
	command, fault := l.commandLine(req.Vm, spec)
	if fault != nil {
		return 0, fault
	}
	home := spec.WorkingDirectory
	if home == "" {
		home = "/root"
	}
	started := exec.Command("/bin/sh", "-c", command)
	started.Dir = l.hostPath(req.Vm, home)
	if info, err := os.Stat(started.Dir); err != nil || !info.IsDir() {
		return 0, fileNotFound(spec.WorkingDirectory)
	}
	started.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + l.hostPath(req.Vm, "/root")}, spec.EnvVariables...)
	started.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := started.Start(); err != nil {
		return 0, systemError(err)
	}
	st.system.Lock()
	defer st.system.Unlock()
	if st.system.processes == nil {
		st.system.processes = map[int64]*process{}
		st.system.count = 1000
	}
	st.system.count++
	p := &process{group: started.Process.Pid, info: guestProcessInfo{
		Name: path.Base(unixPath(spec.ProgramPath)), Pid: st.system.count, Owner: user, StartTime: time.Now(),
		CmdLine: strings.TrimSpace(`"` + spec.ProgramPath + `" ` + spec.Arguments),
	}}
	st.system.processes[p.info.Pid] = p
	go func() {
		code := exitCode(started.Wait())
		st.system.Lock()
		defer st.system.Unlock()
		now := time.Now()
		p.info.EndTime, p.info.ExitCode, p.group = &now, &code, 0
	}()
	return p.info.Pid, nil
}

// commandLine is what the shell of this machine runs for a program of the guest.
func (l *Lab) commandLine(ref types.ManagedObjectReference, spec *types.GuestProgramSpec) (string, types.BaseMethodFault) {
	program := unixPath(spec.ProgramPath)
	if !strings.HasPrefix(program, "/") {
		return "", fileNotFound(spec.ProgramPath)
	}
	arguments := l.translate(ref, spec.Arguments)
	if strings.EqualFold(path.Base(program), "cmd.exe") { // no Windows here: a shell does what `cmd /c` would
		arguments = strings.TrimSpace(arguments)
		if len(arguments) > 2 && strings.EqualFold(arguments[:2], "/c") {
			arguments = strings.TrimSpace(arguments[2:])
		}
		if n := len(arguments); n > 1 && arguments[0] == '"' && arguments[n-1] == '"' {
			arguments = arguments[1 : n-1]
		}
		return arguments, nil
	}
	file := l.hostPath(ref, program)
	if _, err := os.Stat(file); err != nil {
		file = path.Clean(program)
		for _, own := range guestRoots {
			if strings.HasPrefix(file, "/"+own+"/") {
				return "", fileNotFound(spec.ProgramPath)
			}
		}
	}
	info, err := os.Stat(file)
	switch {
	case err != nil || info.IsDir():
		return "", fileNotFound(spec.ProgramPath)
	case info.Mode()&0o111 == 0:
		return "", &types.GuestPermissionDenied{}
	}
	return "exec '" + strings.ReplaceAll(file, "'", `'\''`) + "' " + arguments, nil
}

func fileNotFound(file string) types.BaseMethodFault {
	f := &types.FileNotFound{}
	f.File = file
	f.FaultMessage = localized("File " + file + " was not found")
	return f
}

func exitCode(err error) int32 {
	if err == nil {
		return 0
	}
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return int32(128 + status.Signal())
		}
		return int32(ended.ExitCode())
	}
	return 1
}

// ListProcessesInGuest tells of programs that run or ended within five minutes.
func (m *processMethods) ListProcessesInGuest(ctx *simulator.Context, req *types.ListProcessesInGuest) soap.HasFault {
	body := &listProcessesBody{}
	st, _, fault := m.lab.inGuest(req.Vm, req.Auth)
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
		return body
	}
	body.Res = &ListProcessesInGuestResponse{}
	wanted := map[int64]bool{}
	for _, pid := range req.Pids {
		wanted[pid] = true
	}
	st.system.Lock()
	defer st.system.Unlock()
	for pid, p := range st.system.processes {
		if p.info.EndTime != nil && time.Since(*p.info.EndTime) > remembered {
			delete(st.system.processes, pid)
		} else if len(wanted) == 0 || wanted[pid] {
			body.Res.Returnval = append(body.Res.Returnval, p.info)
		}
	}
	all := body.Res.Returnval
	sort.Slice(all, func(i, j int) bool { return all[i].Pid < all[j].Pid })
	return body
}

// TerminateProcessInGuest kills a program and what it started.
func (m *processMethods) TerminateProcessInGuest(ctx *simulator.Context, req *types.TerminateProcessInGuest) soap.HasFault {
	body := &methods.TerminateProcessInGuestBody{}
	st, _, fault := m.lab.inGuest(req.Vm, req.Auth)
	if fault == nil {
		st.system.Lock()
		p := st.system.processes[req.Pid]
		if p == nil || p.group == 0 {
			fault = &types.GuestProcessNotFound{Pid: req.Pid}
		} else {
			_ = syscall.Kill(-p.group, syscall.SIGKILL)
		}
		st.system.Unlock()
	}
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.TerminateProcessInGuestResponse)
	}
	return body
}

// ReadEnvironmentVariableInGuest tells the environment that programs get.
func (m *processMethods) ReadEnvironmentVariableInGuest(
	ctx *simulator.Context, req *types.ReadEnvironmentVariableInGuest,
) soap.HasFault {
	body := &methods.ReadEnvironmentVariableInGuestBody{}
	_, user, fault := m.lab.inGuest(req.Vm, req.Auth)
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
		return body
	}
	body.Res = &types.ReadEnvironmentVariableInGuestResponse{}
	for _, one := range []string{"HOME=/root", "PATH=/usr/local/bin:/usr/bin:/bin", "USER=" + user} {
		name, _, _ := strings.Cut(one, "=")
		for _, wanted := range append(req.Names, "")[:max(len(req.Names), 1)] {
			if wanted == "" || wanted == name {
				body.Res.Returnval = append(body.Res.Returnval, one)
			}
		}
	}
	return body
}

// killGuest ends the programs of a guest that goes down.
func (st *vmState) killGuest() {
	st.system.Lock()
	defer st.system.Unlock()
	for _, p := range st.system.processes {
		if p.group != 0 {
			_ = syscall.Kill(-p.group, syscall.SIGKILL)
		}
	}
	st.system.processes = nil
}

// ValidateCredentialsInGuest checks a login.
func (m *authMethods) ValidateCredentialsInGuest(ctx *simulator.Context, req *types.ValidateCredentialsInGuest) soap.HasFault {
	body := &methods.ValidateCredentialsInGuestBody{}
	if _, _, fault := m.lab.inGuest(req.Vm, req.Auth); fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.ValidateCredentialsInGuestResponse)
	}
	return body
}

func guestError(err error, file string) types.BaseMethodFault {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return fileNotFound(file)
	case errors.Is(err, os.ErrExist):
		f := &types.FileAlreadyExists{}
		f.File = file
		return f
	case errors.Is(err, os.ErrPermission):
		return &types.GuestPermissionDenied{}
	}
	f := &types.FileFault{File: file}
	f.FaultMessage = localized(fmt.Sprint(err))
	return f
}
