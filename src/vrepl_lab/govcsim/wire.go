package main

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// wire speaks the control protocol: "key value" lines, a message ended by an empty line.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
}

func newWire(conn net.Conn) *wire { return &wire{conn, bufio.NewReader(conn)} }

func (w *wire) close() { _ = w.conn.Close() }

func (w *wire) read() (map[string]string, error) {
	msg := map[string]string{}
	for {
		line, err := w.in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			if len(msg) > 0 {
				return msg, nil
			}
			continue
		}
		key, value, _ := strings.Cut(line, " ")
		msg[key] = value
	}
}

func (w *wire) reply(lines ...string) {
	for i, line := range lines {
		lines[i] = strings.ReplaceAll(line, "\n", " ")
	}
	_, _ = w.conn.Write([]byte(strings.Join(lines, "\n") + "\n\n"))
}

// status answers with a VixError and a sentence for the log.
func (w *wire) status(code int, text string) {
	w.reply(fmt.Sprintf("status %d", code), "text "+text)
}

func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}
