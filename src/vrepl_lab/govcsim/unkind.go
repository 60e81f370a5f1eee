package main

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/http"
	"os"
	"regexp"
	"unicode/utf8"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// unkind are the settings for what real sites do to their clients and a simulator would not do by itself.
type unkind struct {
	CBTFalse     float64 `json:"cbt_false"`
	CBTMiss      float64 `json:"cbt_miss"`
	CBTWholeDisk bool    `json:"cbt_whole_disk"`
	CBTPerDisk   bool    `json:"cbt_per_disk"`
	CBTStunMS    int     `json:"cbt_stun_ms"`

	WrappedFaults       bool           `json:"wrapped_faults"`
	QuiesceWithoutTools string         `json:"quiesce_without_tools"` // ignored or refused
	DescriptionLimit    int            `json:"description_limit"`     // bytes; 0: none
	HardwareMax         map[string]int `json:"hardware_max"`          // by host name, or * for all
	UnknownGuestIDs     []string       `json:"unknown_guest_ids"`

	Guests            []guestRule    `json:"guests"`
	IsolatedReachable bool           `json:"isolated_reachable"`
	PowerOnMS         int            `json:"power_on_ms"`
	PowerOnLimit      int            `json:"power_on_limit"`  // at once on one host; 0: any number
	HostMemoryMiB     map[string]int `json:"host_memory_mib"` // by host name, or * for all
	CloneGuard        bool           `json:"clone_guard"`
	CustomizeTools    bool           `json:"customize_needs_tools"`
}

func defaultUnkind() unkind {
	return unkind{WrappedFaults: true, QuiesceWithoutTools: "ignored", HardwareMax: map[string]int{}}
}

// draw is a number in [0, 1) that follows from the words alone: the same question gets the same answer on every page and
// at every repetition.
func draw(words ...any) float64 {
	h := fnv.New64a()
	fmt.Fprint(h, words...)
	x := h.Sum64()
	x ^= x >> 33 // murmur3's finisher: FNV's high bits hardly depend on the last bytes
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}

// told is what change tracking says where it is not exact: blocks that did not change beside those that did (cbt_false),
// and nothing about some that did (cbt_miss). A missed change stays missed until its block changes again.
func (l *Lab) told(areas []extent, table string, since uint64) ([]extent, types.BaseMethodFault) {
	s := l.config()
	if s.CBTFalse == 0 && s.CBTMiss == 0 {
		return areas, nil
	}
	data, err := os.ReadFile(table)
	if err != nil {
		return nil, systemError(err)
	}
	size := int64(binary.LittleEndian.Uint32(data[12:]))
	uuid := string(data[32:48])
	var said []extent
	for i := int64(0); i < int64(binary.LittleEndian.Uint64(data[24:])); i++ {
		last := binary.LittleEndian.Uint32(data[ctkHeader+4*i:])
		say := uint64(last) > since
		if say {
			say = draw("miss", uuid, "/", i, "/", last) >= s.CBTMiss
		} else {
			say = draw("false", uuid, "/", i, "/", since) < s.CBTFalse
		}
		if say {
			said = appendExtent(said, extent{i * size, size})
		}
	}
	return said, nil
}

// kept is what remains of a snapshot's description where the host cuts it.
func (l *Lab) kept(description string) string {
	limit := l.config().DescriptionLimit
	if limit <= 0 || len(description) <= limit {
		return description
	}
	for limit > 0 && !utf8.RuneStart(description[limit]) {
		limit--
	}
	return description[:limit]
}

// quotedCookies sends the session's cookie as vCenter does, with its value in quotes.
type quotedCookies struct{ http.ResponseWriter }

var plainCookie = regexp.MustCompile(`^(` + soap.SessionCookieName + `=)([^";]+)`)

func (q *quotedCookies) quote() {
	cookies := q.Header()["Set-Cookie"]
	for i, cookie := range cookies {
		cookies[i] = plainCookie.ReplaceAllString(cookie, `$1"$2"`)
	}
}

// WriteHeader sends status and headers.
func (q *quotedCookies) WriteHeader(status int) {
	q.quote()
	q.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body, and before the first one the headers.
func (q *quotedCookies) Write(data []byte) (int, error) {
	q.quote()
	return q.ResponseWriter.Write(data)
}

// Flush sends what was written so far.
func (q *quotedCookies) Flush() {
	if f, ok := q.ResponseWriter.(http.Flusher); ok {
		q.quote()
		f.Flush()
	}
}
