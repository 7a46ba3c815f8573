package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/cluster"
)

// headerForwarded marks a request that another server passed on, and says how
// much time it has left. A request that bears it is not passed on again: two
// servers that take each other for the leader would do so for ever.
const headerForwarded = "Localsnap-Forwarded"

const (
	dialTimeout     = time.Second
	maxPeerConns    = 128
	idlePeerTimeout = 30 * time.Second
)

// newPeers returns the client by which requests are passed on. It follows no
// redirects and asks no proxies: a request goes where it is sent.
func newPeers() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			MaxConnsPerHost:     maxPeerConns,
			MaxIdleConnsPerHost: maxPeerConns,
			IdleConnTimeout:     idlePeerTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// left returns how much time a request has, and whether another server passed
// it on.
func (s *service) left(r *http.Request) (left time.Duration, forwarded bool) {
	text := r.Header.Get(headerForwarded)
	if text == "" {
		return s.timeout, false
	}
	left, err := time.ParseDuration(text)
	if err != nil {
		return s.timeout, true
	}
	return min(left, s.timeout), true
}

// forward passes a request on to the leader at address and its reply back. If
// it fails nothing has been written; the error is cluster.ErrNotLeader if it is
// sure that the request was not carried out, else cluster.ErrUnknown.
func (s *service) forward(ctx context.Context, w http.ResponseWriter, address, query, id string) error {
	target := url.URL{Scheme: "http", Host: address, Path: servicePath, RawQuery: query}
	// The method makes no difference to the service, but the library repeats
	// a GET on its own account.
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), nil)
	if err != nil {
		return fmt.Errorf("pass on to %s: %w", address, err)
	}
	request.Header.Set(headerRequestID, id)
	if deadline, ok := ctx.Deadline(); ok {
		request.Header.Set(headerForwarded, time.Until(deadline).String())
	}
	response, err := s.peers.Do(request)
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return fmt.Errorf("%w: %w", cluster.ErrNotLeader, err)
		}
		return fmt.Errorf("%w: %w", cluster.ErrUnknown, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusMisdirectedRequest {
		return fmt.Errorf("%w: says %s", cluster.ErrNotLeader, address)
	}
	for _, name := range []string{"Content-Type", "Content-Length", headerRequestID} {
		if value := response.Header.Get(name); value != "" {
			w.Header().Set(name, value)
		}
	}
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, response.Body); err != nil {
		s.log.Warn("api: reply was cut off", "request", id, "leader", address, "error", err)
	}
	return nil
}

// misdirected tells a server that passed a request on to this one that nothing
// happened, as this one doesn't lead, or soon won't.
func (s *service) misdirected(w http.ResponseWriter, id string) {
	s.write(w, http.StatusMisdirectedRequest, id, &client.Reply{
		Code: client.Stopped, Detail: "this server does not lead, or is stopping; nothing was done",
	})
}
