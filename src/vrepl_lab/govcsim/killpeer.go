package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// killPeer ends the process at the other end of a connection of this machine, as a crash would: the rule "crash" of
// `vrepl lab set`, which libvixDiskLib carries out in the client itself.
func killPeer(conn net.Conn) {
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	inode := inodeOf(remote)
	if inode == "" {
		return
	}
	wanted := "socket:[" + inode + "]"
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, name := range descriptors {
		if link, err := os.Readlink(name); err != nil || link != wanted {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGSEGV)
			return
		}
	}
}

// inodeOf is the socket whose local end is this address, in the kernel's table.
func inodeOf(address *net.TCPAddr) string {
	ip := address.IP.To4()
	if ip == nil {
		return ""
	}
	local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], address.Port)
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(table), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 9 && fields[1] == local {
			return fields[9]
		}
	}
	return ""
}
