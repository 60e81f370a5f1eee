package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	vapi "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	restCIS    = "/rest/com/vmware/cis"
	restTags   = restCIS + "/tagging"
	apiSession = "vmware-api-session-id"
)

// serveREST adds vCenter's REST API as govmomi's vapi/simulator has it: sessions and tags under /rest, and the same under
// /api, where replies are not wrapped.
func (l *Lab) serveREST() {
	patterns, handler := vapi.New(l.svc.Listen, l.svc.Context.Map)
	l.restAPI = handler
	for _, pattern := range patterns {
		if strings.HasPrefix(pattern, "/api") {
			continue
		}
		l.svc.ServeMux.Handle(pattern, l.guardREST(handler))
	}
	l.svc.ServeMux.Handle("/api/", l.guardREST(http.HandlerFunc(l.api)))
	l.svc.ServeMux.Handle("/api", l.guardREST(handler)) // JSON-RPC
}

// guardREST counts calls as "REST METHOD place", and applies the fault rules of method REST.
func (l *Lab) guardREST(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.calls.add("REST " + r.Method + " " + restPlace(r.URL))
		rule := l.rules.match("REST", "")
		if rule == nil || rule.Action == "fault" {
			next.ServeHTTP(w, r)
			return
		}
		l.apply(rule, call{method: "REST"}, next, w, r)
	})
}

// restPlace is what a call is about, without identifiers: "tag-association?list-attached-objects".
func restPlace(u *url.URL) string {
	place := ""
	for _, part := range strings.Split(strings.Trim(u.Path, "/"), "/") {
		if !strings.HasPrefix(part, "id:") && !strings.HasPrefix(part, "urn:") {
			place = part
		}
	}
	query := u.Query()
	for _, key := range []string{"~action", "action"} {
		if action := query.Get(key); action != "" {
			return place + "?" + action
		}
	}
	return place
}

// api serves /api/session and /api/cis/tagging by what is under /rest: the same without the wrapping "value".
func (l *Lab) api(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(path.Clean(r.URL.Path), "/api")
	target := *r.URL
	switch {
	case ok && rest == "/session":
		target.Path = restCIS + "/session"
	case ok && strings.HasPrefix(rest, "/cis/tagging/"):
		target.Path = restTags + strings.TrimPrefix(rest, "/cis/tagging")
		if parts := strings.Split(strings.Trim(rest, "/"), "/"); len(parts) > 3 && !strings.HasPrefix(parts[3], "id:") {
			target.Path = path.Join(restTags, parts[2], "id:"+parts[3])
		}
	default:
		http.NotFound(w, r)
		return
	}
	query := target.Query()
	if action := query.Get("action"); action != "" {
		query.Del("action")
		query.Set("~action", action)
		target.RawQuery = query.Encode()
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	inner := r.Clone(r.Context())
	inner.URL, inner.RequestURI, inner.Body = &target, target.RequestURI(), io.NopCloser(bytes.NewReader(wrap(r, rest, body)))
	kept := &keptReply{header: http.Header{}}
	l.restAPI.ServeHTTP(kept, inner)
	for key, values := range kept.header {
		if key != "Content-Length" {
			w.Header()[key] = values
		}
	}
	status := kept.status
	if status == 0 {
		status = http.StatusOK
	}
	var reply struct {
		Value json.RawMessage `json:"value"`
	}
	content := kept.body.Bytes()
	if json.Unmarshal(content, &reply) == nil && reply.Value != nil {
		content = reply.Value
	}
	if rest == "/session" && r.Method == http.MethodPost && status == http.StatusOK {
		var id string
		_ = json.Unmarshal(content, &id)
		w.Header().Set(apiSession, id)
		status = http.StatusCreated
	}
	w.WriteHeader(status)
	_, _ = w.Write(content)
}

// wrap gives a specification the name that it has under /rest.
func wrap(r *http.Request, rest string, body []byte) []byte {
	if r.Method == http.MethodPost && len(body) == 0 && rest != "/session" {
		return []byte("{}") // govcsim's handler wants a body where vCenter wants none
	}
	if r.Method != http.MethodPost || r.URL.Query().Get("action") != "" || len(body) == 0 {
		return body
	}
	if strings.HasSuffix(rest, "/tag") || strings.HasSuffix(rest, "/category") {
		return append(append([]byte(`{"create_spec":`), body...), '}')
	}
	return body
}

// restCall is a call of the lab's own, as its user.
func (l *Lab) restCall(session *string, method, target string, body any, into any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, "https://lab"+target, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if *session == "" {
		r.SetBasicAuth(l.user, l.password)
	} else {
		r.Header.Set(apiSession, *session)
	}
	r.Header.Set("Content-Type", "application/json")
	kept := &keptReply{header: http.Header{}}
	l.restAPI.ServeHTTP(kept, r)
	if kept.status >= 300 {
		return fmt.Errorf("%s %s: %d %s", method, target, kept.status, kept.body.String())
	}
	var reply struct {
		Value json.RawMessage `json:"value"`
	}
	if into == nil || kept.body.Len() == 0 {
		return nil
	}
	if err := json.Unmarshal(kept.body.Bytes(), &reply); err != nil {
		return err
	}
	return json.Unmarshal(reply.Value, into)
}

// seedTags makes the categories and tags of the inventory and attaches them. A tag is written "Category/Tag".
func (l *Lab) seedTags(inv *inventory, byName map[string]types.ManagedObjectReference) error {
	if len(inv.Categories) == 0 || l.restAPI == nil {
		return nil
	}
	session := ""
	if err := l.restCall(&session, http.MethodPost, restCIS+"/session", nil, &session); err != nil {
		return err
	}
	tags := map[string]string{}
	for _, category := range inv.Categories {
		spec := map[string]any{"create_spec": map[string]any{
			"name": category.Name, "description": category.Description, "cardinality": category.Cardinality,
			"associable_types": []string{},
		}}
		id := ""
		if err := l.restCall(&session, http.MethodPost, restTags+"/category", spec, &id); err != nil {
			return err
		}
		for _, name := range category.Tags {
			spec := map[string]any{"create_spec": map[string]any{"name": name, "description": "", "category_id": id}}
			tag := ""
			if err := l.restCall(&session, http.MethodPost, restTags+"/tag", spec, &tag); err != nil {
				return err
			}
			tags[category.Name+"/"+name] = tag
		}
	}
	for _, vm := range inv.VMs {
		for _, name := range vm.Tags {
			id, ok := tags[name]
			if !ok {
				return fmt.Errorf("%s: no tag %q", vm.Name, name)
			}
			ref := byName[vm.key()]
			body := map[string]any{"object_id": map[string]string{"id": ref.Value, "type": ref.Type}}
			target := restTags + "/tag-association/id:" + id + "?~action=attach"
			if err := l.restCall(&session, http.MethodPost, target, body, nil); err != nil {
				return err
			}
		}
	}
	return l.restCall(&session, http.MethodDelete, restCIS+"/session", nil, nil)
}
