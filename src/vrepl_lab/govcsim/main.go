// Command govcsim is one vCenter of the lab: govmomi's simulator with snapshots that split disks, change tracking,
// and the control and NFC ports that the lab's libvixDiskLib talks to. docs/lab-internals.md is its contract.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
)

type options struct {
	site, dir, listen, user, passwordFile, cert, key string
	dieWithStdin                                     bool
}

func main() {
	var o options
	flag.StringVar(&o.site, "site", "", "name of the site")
	flag.StringVar(&o.dir, "dir", "", "folder of the site")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:0", "address of the SDK; the VDDK port is on the same host")
	flag.StringVar(&o.user, "user", "", "the only user who may log in")
	flag.StringVar(&o.passwordFile, "password-file", "", "file that holds the password")
	flag.StringVar(&o.cert, "cert", "", "TLS certificate, PEM")
	flag.StringVar(&o.key, "key", "", "its key, PEM")
	flag.BoolVar(&o.dieWithStdin, "die-with-stdin", false, "end when standard input is closed")
	flag.Parse()
	log.SetFlags(log.Ldate | log.Ltime | log.Lmicroseconds)
	if err := serve(o); err != nil {
		log.Fatal(err)
	}
}

func serve(o options) error {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(dir, "ready.json")) // of an earlier life
	password, err := os.ReadFile(o.passwordFile)
	if err != nil {
		return err
	}
	inv, err := readInventory(filepath.Join(dir, "inventory.json"))
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return err
	}
	l := newLab(o, dir, strings.TrimRight(string(password), "\r\n"), inv.Seed, inv.ESX)
	l.svc.ServeMux = http.NewServeMux()
	if !inv.ESX {
		l.serveREST()
	}
	if err := l.build(inv); err != nil {
		return err
	}
	listeners, err := l.listen(o, inv.PortHint)
	if err != nil {
		return err
	}
	l.urlPort = listeners.sdk.Addr().(*net.TCPAddr).Port
	sdk := &http.Server{
		Handler:           l.guard(l.mux(listeners.sdk.Addr().String())),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1: a dropped reply must end it
		ReadHeaderTimeout: time.Minute,
	}
	admin := &http.Server{Handler: l.adminHandler(), ReadHeaderTimeout: time.Minute}
	failed := make(chan error, 2)
	go func() { failed <- sdk.ServeTLS(listeners.sdk, "", "") }()
	go func() { failed <- admin.Serve(listeners.admin) }()
	go l.serveControl(listeners.control)
	if err := l.ready(listeners).write(dir); err != nil {
		return err
	}
	log.Printf("%s serves https://%s/sdk", o.site, listeners.sdk.Addr())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	if o.dieWithStdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop <- syscall.SIGTERM
		}()
	}
	select {
	case err = <-failed:
	case <-stop:
		err = nil
	}
	_ = os.Remove(filepath.Join(dir, "ready.json"))
	_ = os.Remove(filepath.Join(dir, "control.sock"))
	return err
}

func newLab(o options, dir, password, seed string, standalone bool) *Lab {
	l := &Lab{
		site: o.site, dir: dir, root: filepath.Dir(dir), seed: seed, user: o.user, password: password,
		settings: defaultSettings(), vms: map[string]*vmState{}, links: map[string]*link{}, handles: map[*handle]struct{}{},
		devices: blockDevices{all: map[string]*blockDevice{}},
		stores:  map[string]*datastore{}, prepared: map[string]string{}, uses: map[string][]use{}, nfc: map[string]*nfcHost{},
		library:  mapSettings(filepath.Join(dir, "settings.bin")),
		powerOns: newGates(), standalone: standalone,
	}
	content, root := service(standalone)
	ctx := simulator.NewContext()
	_, instance := simulator.NewServiceInstance(ctx, content, root)
	if !standalone {
		instance.Content.About.InstanceUuid = l.newUUID("vcenter")
	}
	l.svc = simulator.New(ctx, instance)
	l.svc.Listen = &url.URL{User: url.UserPassword(o.user, password)}
	l.install(ctx.Map)
	l.addGuestAuth(ctx)
	return l
}

// mux serves what govcsim's own server serves, on our listener and behind the fault rules.
func (l *Lab) mux(address string) http.Handler {
	registry := l.svc.Context.Map
	l.svc.RegisterSDK(registry, registry.Path+"/vimService")
	registry.SessionManager().ServiceHostName = address
	l.svc.ServeMux.HandleFunc(registry.Path+"/vimServiceVersions.xml", l.svc.ServiceVersions)
	l.svc.ServeMux.HandleFunc("/folder/", l.svc.ServeDatastore)
	l.svc.ServeMux.HandleFunc(guestFileURL, l.serveGuestFile)
	return l.svc.ServeMux
}

type listeners struct{ sdk, control, admin net.Listener }

func (l *Lab) listen(o options, hint int) (*listeners, error) {
	var all listeners
	var err error
	if all.sdk, err = net.Listen("tcp", o.listen); err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(all.sdk.Addr().String())
	if all.control, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		return nil, err
	}
	if l.nfcPort, err = l.listenNFC(hint); err != nil {
		return nil, err
	}
	if err = l.listenBeside(host); err != nil {
		return nil, err
	}
	socket := filepath.Join(l.dir, "control.sock")
	_ = os.Remove(socket)
	// A socket's address holds 107 bytes; by way of its open folder it fits, however deep the lab lies.
	folder, err := os.Open(l.dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	address := fmt.Sprintf("/proc/self/fd/%d/control.sock", folder.Fd())
	if all.admin, err = (&net.ListenConfig{}).Listen(context.Background(), "unix", address); err != nil {
		return nil, err
	}
	all.admin.(*net.UnixListener).SetUnlinkOnClose(false)
	return &all, os.Chmod(socket, 0o600)
}

func (l *Lab) ready(all *listeners) *ready {
	r := &ready{
		PID: os.Getpid(), URLPort: all.sdk.Addr().(*net.TCPAddr).Port, VDDKPort: all.control.Addr().(*net.TCPAddr).Port,
		NFCPort: l.nfcPort,
	}
	for _, entity := range l.svc.Context.Map.All("HostSystem") {
		if !l.inFirst(entity.Entity().Name) {
			continue
		}
		r.Hosts = append(r.Hosts, readyHost{entity.Entity().Name, entity.Reference().Value})
	}
	return r
}
