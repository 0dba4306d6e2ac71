package agent

import (
	"net/http"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/nacrehq/nacre/agent/envd/filesystempb"
	"github.com/nacrehq/nacre/agent/envd/processpb"
)

// calls are the procedures by their paths, and whether each is a stream.
type calls map[string]bool

func knownCalls() calls {
	out := calls{}
	for _, file := range []protoreflect.FileDescriptor{processpb.File_process_proto, filesystempb.File_filesystem_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				out["/"+string(service.FullName())+"/"+string(m.Name())] = m.IsStreamingClient() || m.IsStreamingServer()
			}
		}
	}
	return out
}

// refuse answers what connect would with an empty body or with plain text, on which
// clients fail, and tells whether it did.
func (c calls) refuse(w http.ResponseWriter, r *http.Request) bool {
	stream, ok := c[r.URL.Path]
	media, _, _ := strings.Cut(strings.ToLower(r.Header.Get("Content-Type")), ";")
	media = strings.TrimSpace(media)
	status, code, message := 0, "invalid_argument", ""
	switch {
	case !ok:
		status, code, message = http.StatusNotFound, "unimplemented", "there is no call "+validText(r.URL.Path)
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		status, code, message = http.StatusMethodNotAllowed, "unimplemented", "the method "+validText(r.Method)+" is not allowed here: a call is a POST"
	case strings.HasPrefix(media, "application/grpc"):
		return false
	case stream && media != "application/connect+json" && media != "application/connect+proto":
		status, message = http.StatusUnsupportedMediaType, "Content-Type must be application/connect+json: this call is a stream, of messages in frames"
	case !stream && media != "application/json" && media != "application/proto":
		status, message = http.StatusUnsupportedMediaType, "Content-Type must be application/json"
	default:
		return false
	}
	writeJSON(w, status, map[string]string{"code": code, "message": message})
	return true
}
