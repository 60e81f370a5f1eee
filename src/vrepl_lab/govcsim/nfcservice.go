package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// NfcService gives tickets for disks to clients that have no VDDK. It is in no public description of the API: names,
// arguments and the reference are those of cloudbase/OpenVixDiskLib docs/nfc_auth.md.

type nfcGetVMFiles struct {
	This types.ManagedObjectReference `xml:"_this"`
	Vm   types.ManagedObjectReference `xml:"vm"`
}

type nfcRandomAccessOpen struct {
	This          types.ManagedObjectReference `xml:"_this"`
	Vm            types.ManagedObjectReference `xml:"vm"`
	DiskDeviceKey int32                        `xml:"diskDeviceKey"`
	HostForAccess types.ManagedObjectReference `xml:"hostForAccess"`
}

type nfcTicketResponse struct {
	Returnval types.HostServiceTicket `xml:"returnval"`
}

type nfcGetVMFilesBody struct {
	Res    *nfcTicketResponse `xml:"urn:vim25 NfcGetVmFilesResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *nfcGetVMFilesBody) Fault() *soap.Fault { return b.Fault_ }

type nfcOpenDiskBody struct {
	Res    *nfcTicketResponse `xml:"urn:vim25 NfcRandomAccessOpenDiskResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *nfcOpenDiskBody) Fault() *soap.Fault { return b.Fault_ }

func init() {
	types.Add("NfcGetVmFiles", reflect.TypeOf((*nfcGetVMFiles)(nil)).Elem())
	types.Add("NfcRandomAccessOpenDisk", reflect.TypeOf((*nfcRandomAccessOpen)(nil)).Elem())
	privilegeOf["NfcGetVmFiles"] = "VirtualMachine.Provisioning.DiskRandomRead"
	privilegeOf["NfcRandomAccessOpenDisk"] = "VirtualMachine.Provisioning.DiskRandomAccess"
}

// nfcService is the object behind the reference nfcService.
type nfcService struct {
	shadow // govcsim's searches panic at an object that begins with none of its own types
	lab    *Lab
}

func (l *Lab) installNFCService(registry *simulator.Registry) {
	service := &nfcService{lab: l}
	service.Self = types.ManagedObjectReference{Type: "NfcService", Value: "nfcService"}
	if l.standalone {
		service.Self.Value = "ha-nfc-service" // hystax/OpenVixDiskLib docs/nfc_auth.md, an ESXi 8.0.3
	}
	registry.Put(service)
}

// NfcGetVmFiles gives a ticket to read the files of a VM.
func (s *nfcService) NfcGetVmFiles(_ *simulator.Context, req *nfcGetVMFiles) soap.HasFault {
	body := &nfcGetVMFilesBody{}
	ticket, fault := s.lab.nfcTicket(nfcTicket{vm: req.Vm})
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
		return body
	}
	body.Res = &nfcTicketResponse{*ticket}
	return body
}

// NfcRandomAccessOpenDisk gives a ticket to write one disk of a VM.
func (s *nfcService) NfcRandomAccessOpenDisk(_ *simulator.Context, req *nfcRandomAccessOpen) soap.HasFault {
	body := &nfcOpenDiskBody{}
	ticket, fault := s.lab.nfcTicket(nfcTicket{
		vm: req.Vm, writable: true, key: req.DiskDeviceKey, wanted: req.HostForAccess,
	})
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
		return body
	}
	body.Res = &nfcTicketResponse{*ticket}
	return body
}

// nfcTicket is what a ticket stands for. It serves once.
type nfcTicket struct {
	vm       types.ManagedObjectReference
	key      int32 // of the disk that may be written
	writable bool
	wanted   types.ManagedObjectReference // the host that was asked for
	host     string
	expires  time.Time
}

// nfcTicketLife is how long a ticket waits to be presented. Nobody has published how long it is on an ESXi (guess).
const nfcTicketLife = time.Minute

func (l *Lab) nfcTicket(t nfcTicket) (*types.HostServiceTicket, types.BaseMethodFault) {
	vm := l.vm(t.vm)
	if vm == nil {
		return nil, &types.ManagedObjectNotFound{Obj: t.vm}
	}
	ctx := l.context()
	var fault types.BaseMethodFault
	ctx.WithLock(vm, func() {
		host, _ := ctx.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
		t.host = host.Name
		if !t.writable {
			return
		}
		if t.wanted != host.Self {
			fault = invalidArgument("hostForAccess")
			return
		}
		for _, disk := range disks(vm.Config.Hardware.Device) {
			if disk.Key == t.key {
				return
			}
		}
		fault = invalidArgument("diskDeviceKey")
	})
	if fault != nil {
		return nil, fault
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	secret := fmt.Sprintf("%x-%x-%x-%x-%x", raw[0:4], raw[4:6], raw[6:8], raw[8:10], raw[10:16])
	t.expires = time.Now().Add(nfcTicketLife)
	host := l.nfc[t.host]
	host.mu.Lock()
	for key, old := range host.issued {
		if time.Now().After(old.expires) {
			delete(host.issued, key)
		}
	}
	host.issued[secret] = t
	host.mu.Unlock()
	ticket := &types.HostServiceTicket{
		Host: t.host, Port: int32(l.nfcPort), SslThumbprint: host.identity.sha1, Service: "vpxa-nfc", ServiceVersion: "1.1",
		SessionId: secret,
	}
	if l.standalone { // its client knows where it is
		ticket.Host, ticket.Service = "", "nfc"
	}
	return ticket, nil
}

// takeNFC spends a ticket; false if there is none any more.
func (h *nfcHost) takeNFC(secret string) (nfcTicket, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.issued[secret]
	delete(h.issued, secret)
	return t, ok && time.Now().Before(t.expires)
}

// hostIdentity is a host's certificate, made when the lab starts: no CA knows it, as with an ESXi host's own.
type hostIdentity struct {
	certificate  tls.Certificate
	sha1, sha256 string
}

func newHostIdentity(host string) (*hostIdentity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "localhost.localdomain", Organization: []string{"the lab's host " + host}},
		NotBefore:    time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	one, two := sha1.Sum(der), sha256.Sum256(der)
	return &hostIdentity{
		certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		sha1:        colons(one[:]), sha256: colons(two[:]),
	}, nil
}

func colons(sum []byte) string {
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = strings.ToUpper(hex.EncodeToString([]byte{b}))
	}
	return strings.Join(pairs, ":")
}
