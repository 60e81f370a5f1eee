// Plain, unextended govcsim as one small command: what vrepl meets where change tracking does not exist.
//
// `go run . --listen 127.0.0.1:0 --user U --password-file F --cert cert.pem --key key.pem [--vms N]` prints its URL on
// the first line and serves until stdin ends or SIGTERM.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	user := flag.String("user", "", "the only user that may log in")
	passwordFile := flag.String("password-file", "", "file that holds the password")
	certificate := flag.String("cert", "", "TLS certificate (PEM)")
	key := flag.String("key", "", "TLS key (PEM)")
	vms := flag.Int("vms", 2, "virtual machines per resource pool")
	hosts := flag.Int("hosts", 1, "hosts of the cluster")
	esx := flag.Bool("esx", false, "a standalone ESXi host instead of a vCenter")
	flag.Parse()

	password, err := os.ReadFile(*passwordFile)
	if err != nil {
		log.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	} else {
		model.Host = 0
		model.ClusterHost = *hosts
	}
	model.Machine = *vms
	if err = model.Create(); err != nil {
		log.Fatal(err)
	}
	defer model.Remove()
	model.Service.Listen = &url.URL{
		Host: *listen,
		User: url.UserPassword(*user, strings.TrimRight(string(password), "\n")),
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server := model.Service.NewServer()
	defer server.Close()
	fmt.Printf("https://%s/sdk\n", server.URL.Host)

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended <- syscall.SIGTERM
	}()
	<-ended
}
