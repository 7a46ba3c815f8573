package api

import (
	"fmt"
	"net/http"

	"github.com/julienschmidt/httprouter"
)

// healthz answers as long as the process does.
func (s *service) healthz(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
	fmt.Fprintln(w, "ok")
}

// readyz answers whether this server can have requests answered.
func (s *service) readyz(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
	_, self, known := s.metadata.Leader()
	s.tell(w, self || known, "no leader is known")
}

// leader answers whether this server leads, for load balancers that would spare
// requests the way over a follower.
func (s *service) leader(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
	_, self, _ := s.metadata.Leader()
	s.tell(w, self, "another server leads, or none")
}

func (s *service) tell(w http.ResponseWriter, yes bool, why string) {
	switch {
	case s.isStopping():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	case !yes:
		http.Error(w, why, http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}
