package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"strings"
	"time"
)

// authdBanner is what an ESXi 8 says first on port 902 (cloudbase/OpenVixDiskLib docs/nfc_auth.md; Broadcom KB 341384).
const authdBanner = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, " +
	"MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported/t, SHA256 supported\r\n"

// peeked is a connection of which something was read already.
type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

// hostSession is one connection to a host's port: libvixDiskLib of the lab says "op …", everybody else speaks TLS.
func (l *Lab) hostSession(host *nfcHost, conn net.Conn) {
	p := &peeked{conn, bufio.NewReader(conn)}
	_, _ = io.WriteString(conn, authdBanner)
	first, err := p.in.Peek(1)
	switch {
	case err != nil:
		_ = conn.Close()
	case first[0] == 'o':
		l.nfcSession(host, &wire{conn, p.in})
	case first[0] == 0x16: // a TLS handshake; anything else ends the connection, as "SSL Required" says
		l.authd(host, p)
	default:
		_ = conn.Close()
	}
}

// authd takes a ticket and joins the client to NFC. An order of lines that no client has ends the connection.
func (l *Lab) authd(host *nfcHost, conn *peeked) {
	defer conn.Close()
	config := &tls.Config{
		Certificates: []tls.Certificate{host.identity.certificate}, MinVersion: tls.VersionTLS12,
		MaxVersion:             tls.VersionTLS12, // what ESXi 7 and 8 negotiate (vatesfr/xen-orchestra vectura)
		SessionTicketsDisabled: true,
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	trouble := l.config().NFCTrouble
	first, err := impostor(config, trouble == "first-certificate")
	if err != nil {
		return
	}
	second, err := impostor(config, trouble == "second-certificate")
	if err != nil {
		return
	}
	session := tls.Server(conn, first)
	in := bufio.NewReaderSize(session, 2048)
	line := func() string {
		text, err := in.ReadString('\n')
		if err != nil || !strings.HasSuffix(text, "\r\n") {
			return ""
		}
		return strings.TrimSuffix(text, "\r\n")
	}
	say := func(text string) { _, _ = io.WriteString(session, text+"\r\n") }
	secret, ok := strings.CutPrefix(line(), "SESSION ")
	if !ok {
		say("530 Please login with USER and PASS")
		return
	}
	if line() != "BANNER " { // the space belongs to it
		return
	}
	ticket, ok := host.takeNFC(secret)
	if !ok {
		say("530 Please login with USER and PASS")
		return
	}
	say(strings.TrimSuffix(authdBanner, "\r\n"))
	tag, ok := strings.CutPrefix(line(), "THUMBPRINT_SHA2 ")
	if !ok || tag == "" || strings.ContainsAny(tag, " :") || len(tag) > 260 {
		say("501 Invalid arguments")
		return
	}
	told := host.identity.sha256
	if trouble == "told-certificate" {
		told = strings.Repeat("00:", 31) + "00"
	}
	say("200 " + told)
	var data net.Conn = conn
	mode := ""
	service := "vpxa-nfc"
	if l.standalone {
		service = "nfc"
	}
	switch line() {
	case "PROXY " + service:
		mode = "nbd"
		say("200 Connect ha-nfc")
	case "PROXY " + service + "ssl":
		mode = "nbdssl"
		say("200 Connect ha-nfcssl")
		data = tls.Server(conn, second)
	default:
		say("500 unknown service")
		return
	}
	_ = conn.SetDeadline(time.Time{})
	s := &nfcAIO{lab: l, host: host, conn: data, bare: conn.Conn, mode: mode, ticket: ticket, trouble: trouble}
	if vm := l.vm(ticket.vm); vm != nil {
		s.vmName = plainName(vm.Name)
	}
	defer s.end()
	err = s.greet(tag)
	if err == nil {
		err = s.serve()
	}
	if err != nil && err != io.EOF {
		log.Printf("nfc %s of %s: %v", mode, s.vmName, err)
	}
}

// nfcTroubles are what the setting nfc_trouble may be: whoever is between shows another certificate, at the first TLS or
// at the second, or names another one; data records end in the middle, or lie about their length.
var nfcTroubles = []string{"", "none", "first-certificate", "second-certificate", "told-certificate", "cut", "lie"}

// impostor is the configuration of somebody else's TLS, if it is wanted.
func impostor(config *tls.Config, wanted bool) (*tls.Config, error) {
	if !wanted {
		return config, nil
	}
	other, err := newHostIdentity("127.0.0.1")
	if err != nil {
		return nil, err
	}
	changed := config.Clone()
	changed.Certificates = []tls.Certificate{other.certificate}
	return changed, nil
}

// listenBeside has a standalone host's NFC served where its API is, too: on an ESXi both have one address.
func (l *Lab) listenBeside(host string) error {
	if !l.standalone || l.nfc[host] != nil {
		return nil
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(l.nfcPort)))
	if err != nil {
		return err
	}
	for _, only := range l.nfc {
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				if !only.isOpen() {
					_ = conn.Close()
					continue
				}
				go l.hostSession(only, conn)
			}
		}()
	}
	return nil
}

// errOrder is a client that says something where it may not.
func errOrder(format string, args ...any) error { return fmt.Errorf("out of order: "+format, args...) }
