package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	vxml "github.com/vmware/govmomi/vim25/xml"
)

// faultRule is one line of POST /faults.
type faultRule struct {
	Method      string  `json:"method"`
	VM          string  `json:"vm"`
	Skip        int     `json:"skip"`
	Count       int     `json:"count"`
	Probability float64 `json:"probability"`
	Action      string  `json:"action"`
	Fault       string  `json:"fault"`
	Message     string  `json:"message"`
	DelayMS     int     `json:"delay_ms"`
	Seed        int64   `json:"seed"`
	Seen        int     `json:"seen"`
	Fired       int     `json:"fired"`
	rng         *rand.Rand
}

// ruleSet holds the rules of the API; the first that matches and is due fires.
type ruleSet struct {
	sync.Mutex
	rules []*faultRule
}

// put replaces the rules, or adds to those that stand.
func (s *ruleSet) put(rules []*faultRule, add bool) error {
	for _, r := range rules {
		switch r.Action {
		case "fault", "task_fault":
			if faultByName(r.Fault, types.ManagedObjectReference{}) == nil {
				return fmt.Errorf("unknown fault %q", r.Fault)
			}
		case "task_hang", "http_503", "drop", "drop_reply", "expire_session", "delay":
		default:
			return fmt.Errorf("unknown action %q", r.Action)
		}
		if r.Method == "" {
			return fmt.Errorf("a rule needs a method, or *")
		}
		if r.Probability == 0 {
			r.Probability = 1
		}
		r.Seen, r.Fired, r.rng = 0, 0, rand.New(rand.NewSource(r.Seed))
	}
	s.Lock()
	defer s.Unlock()
	if add {
		rules = append(append([]*faultRule{}, s.rules...), rules...)
	}
	s.rules = rules
	return nil
}

func (s *ruleSet) match(method, vm string) *faultRule {
	s.Lock()
	defer s.Unlock()
	for _, r := range s.rules {
		if (r.Method != "*" && r.Method != method) || (r.VM != "" && r.VM != vm) {
			continue
		}
		task := strings.HasSuffix(method, "_Task")
		if !task && (r.Action == "task_fault" || r.Action == "task_hang") {
			continue
		}
		r.Seen++
		if r.Seen <= r.Skip || (r.Count > 0 && r.Fired >= r.Count) || r.rng.Float64() >= r.Probability {
			continue
		}
		r.Fired++
		fired := *r
		return &fired
	}
	return nil
}

// callCounter counts what GET /soap-calls tells.
type callCounter struct {
	sync.Mutex
	total    int
	byMethod map[string]int
}

func (c *callCounter) add(method string) {
	c.Lock()
	c.total++
	if c.byMethod == nil {
		c.byMethod = map[string]int{}
	}
	c.byMethod[method]++
	c.Unlock()
}

// call is what the rules look at in a request.
type call struct {
	method string
	this   types.ManagedObjectReference
	name   string // of the VM that is made, for CreateVM_Task and CloneVM_Task
}

func parseCall(body []byte) call {
	var c call
	dec := xml.NewDecoder(bytes.NewReader(body))
	inBody := false
	for {
		token, err := dec.Token()
		if err != nil {
			return c
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		switch {
		case !inBody:
			inBody = start.Name.Local == "Body"
		case c.method == "":
			c.method = start.Name.Local
		case start.Name.Local == "_this":
			for _, a := range start.Attr {
				if a.Name.Local == "type" {
					c.this.Type = a.Value
				}
			}
			_ = dec.DecodeElement(&c.this.Value, &start)
			if c.method != "CreateVM_Task" && c.method != "CloneVM_Task" {
				return c
			}
		case start.Name.Local == "name":
			_ = dec.DecodeElement(&c.name, &start)
			return c
		}
	}
}

// vmName is the name of the VM that a call is about, or "".
func (l *Lab) vmName(c call) string {
	if c.this.Type == "VirtualMachineSnapshot" {
		if snap, ok := l.svc.Context.Map.Get(c.this).(*simulator.VirtualMachineSnapshot); ok {
			c.this = snap.Vm
		}
	}
	if c.this.Type == "VirtualMachine" {
		if vm := l.vm(c.this); vm != nil {
			return plainName(vm.Name)
		}
	}
	return plainName(c.name)
}

// guard counts calls and applies the fault rules before govcsim sees a request.
func (l *Lab) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/sdk") {
			next.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		w = &quotedCookies{w}
		c := parseCall(body)
		next := next
		if c.method == "Fetch" {
			next = fetchUnset(next)
		}
		l.calls.add(c.method)
		rule := l.rules.match(c.method, l.vmName(c))
		if rule == nil {
			next.ServeHTTP(w, r)
			return
		}
		log.Printf("rule: %s of %q: %s %s", c.method, l.vmName(c), rule.Action, rule.Fault)
		time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
		l.apply(rule, c, next, w, r)
	})
}

// fetchUnset corrects govcsim's answer to Fetch of an unset property, which is not a FetchResponse: pyVmomi then has no
// attribute where vCenter gives it None.
func fetchUnset(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kept := &keptReply{header: w.Header()}
		next.ServeHTTP(kept, r)
		if kept.status != 0 {
			w.WriteHeader(kept.status)
		}
		_, _ = w.Write(misnamedFetch.ReplaceAll(kept.body.Bytes(), []byte(`<FetchResponse xmlns="urn:vim25"></FetchResponse>`)))
	})
}

var misnamedFetch = regexp.MustCompile(`(?s)<RetrievePropertiesExResponse .*</RetrievePropertiesExResponse>`)

// keptReply is a reply that is not sent yet.
type keptReply struct {
	header http.Header
	body   bytes.Buffer
	status int
}

func (k *keptReply) Header() http.Header         { return k.header }
func (k *keptReply) Write(b []byte) (int, error) { return k.body.Write(b) }
func (k *keptReply) WriteHeader(status int)      { k.status = status }

func (l *Lab) apply(rule *faultRule, c call, next http.Handler, w http.ResponseWriter, r *http.Request) {
	switch rule.Action {
	case "http_503":
		http.Error(w, "503 Service Unavailable", http.StatusServiceUnavailable)
	case "drop":
		panic(http.ErrAbortHandler)
	case "drop_reply":
		next.ServeHTTP(&keptReply{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	case "expire_session":
		if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
			l.expire(strings.Trim(cookie.Value, `"`))
		}
		next.ServeHTTP(w, r)
	case "fault":
		writeFault(w, faultByName(rule.Fault, c.this), rule.Message)
	case "task_fault", "task_hang":
		t := l.newTask(c.this, l.vmName(c), c.method, rule.Action == "task_hang")
		if rule.Action == "task_hang" {
			l.mu.Lock()
			l.hung = append(l.hung, t)
			l.mu.Unlock()
		} else {
			go func() {
				time.Sleep(20 * time.Millisecond)
				finishTask(l.context(), t, nil, faultByName(rule.Fault, c.this), rule.Message)
			}()
		}
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
		fmt.Fprintf(w, `%s<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" `+
			`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><%sResponse xmlns="urn:vim25">`+
			`<returnval type="Task">%s</returnval></%sResponse></soapenv:Body></soapenv:Envelope>`,
			xml.Header, c.method, t.Self.Value, c.method)
	default:
		next.ServeHTTP(w, r)
	}
}

// expire ends a session as if it had been idle for too long.
func (l *Lab) expire(key string) {
	ctx := l.context()
	ctx.Session = &simulator.Session{UserSession: types.UserSession{Key: "lab"}, Registry: ctx.Session.Registry, Map: ctx.Map}
	ctx.Map.SessionManager().TerminateSession(ctx, &types.TerminateSession{SessionId: []string{key}})
}

// loggedIn tells whether a key (or cookie value) is a live session of the lab's user.
func (l *Lab) loggedIn(key string) bool {
	ctx := l.context()
	key = strings.Trim(strings.TrimPrefix(key, soap.SessionCookieName+"="), `"`)
	res := ctx.Map.SessionManager().SessionIsActive(ctx, &types.SessionIsActive{SessionID: key, UserName: l.user})
	active := reflect.ValueOf(res).Elem().FieldByName("Res")
	return active.IsValid() && !active.IsNil() && active.Elem().FieldByName("Returnval").Bool()
}

type faultDetail struct{ fault types.BaseMethodFault }

// MarshalXML names the element after the fault's type, as vCenter does.
func (d *faultDetail) MarshalXML(e *vxml.Encoder, start vxml.StartElement) error {
	kind := reflect.TypeOf(d.fault).Elem().Name()
	start.Name.Local = kind + "Fault"
	start.Attr = append(start.Attr,
		vxml.Attr{Name: vxml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		vxml.Attr{Name: vxml.Name{Local: "xsi:type"}, Value: kind})
	return e.EncodeElement(d.fault, start)
}

func writeFault(w http.ResponseWriter, fault types.BaseMethodFault, message string) {
	if message == "" {
		message = faultText(fault)
	}
	type soapFault struct {
		XMLName vxml.Name `xml:"soapenv:Fault"`
		Code    string    `xml:"faultcode"`
		String  string    `xml:"faultstring"`
		Detail  struct {
			Fault *faultDetail
		} `xml:"detail"`
	}
	f := &soapFault{Code: "ServerFaultCode", String: message}
	f.Detail.Fault = &faultDetail{fault}
	envelope := struct {
		XMLName vxml.Name `xml:"soapenv:Envelope"`
		Env     string    `xml:"xmlns:soapenv,attr"`
		XSD     string    `xml:"xmlns:xsd,attr"`
		XSI     string    `xml:"xmlns:xsi,attr"`
		Body    struct {
			Fault *soapFault
		} `xml:"soapenv:Body"`
	}{
		Env: "http://schemas.xmlsoap.org/soap/envelope/", XSD: "http://www.w3.org/2001/XMLSchema",
		XSI: "http://www.w3.org/2001/XMLSchema-instance",
	}
	envelope.Body.Fault = f
	out, err := vxml.Marshal(envelope)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = w.Write(append([]byte(xml.Header), out...))
}
