package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// ErrNotRunning says that no gateway listens at the address.
var ErrNotRunning = errors.New("no gateway answers")

// Client speaks to the admin API of a running gateway.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient returns a client for the gateway whose listen.http is addr.
func NewClient(addr, token string) *Client {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		// A gateway on all interfaces is on this one too.
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			addr = net.JoinHostPort("127.0.0.1", port)
		}
	}
	return &Client{
		base:  "http://" + addr,
		token: token,
		// No proxy: the token must not leave for one.
		http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: writeTimeout},
	}
}

// Status returns what the gateway says of itself.
func (c *Client) Status(ctx context.Context) (*StatusInfo, error) {
	return call[StatusInfo](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Groups returns all groups, without members.
func (c *Client) Groups(ctx context.Context) ([]GroupInfo, error) {
	list, err := call[[]GroupInfo](ctx, c, http.MethodGet, "/v1/groups", nil)
	if err != nil {
		return nil, err
	}
	return *list, nil
}

// Group returns one group with its members.
func (c *Client) Group(ctx context.Context, name string) (*GroupInfo, error) {
	return call[GroupInfo](ctx, c, http.MethodGet, "/v1/groups/"+url.PathEscape(name), nil)
}

// Rekey renews the keying material of a group.
func (c *Client) Rekey(ctx context.Context, group, reason string) (*RekeyResult, error) {
	return call[RekeyResult](ctx, c, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+"/rekey",
		map[string]string{"reason": reason})
}

// RekeyScheduled is Rekey with members told in the group's order.
func (c *Client) RekeyScheduled(ctx context.Context, group, reason string) (*RekeyResult, error) {
	return call[RekeyResult](ctx, c, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+"/rekey",
		map[string]any{"reason": reason, "scheduled": true})
}

// Evict removes members from a group; Sender IDs are hexadecimal.
func (c *Client) Evict(ctx context.Context, group string, nodes, senderIDs []string) (*EvictResult, error) {
	return call[EvictResult](ctx, c, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+"/evict",
		map[string][]string{"nodes": nodes, "sender_ids": senderIDs})
}

// CreateGroup brings a group into being.
func (c *Client) CreateGroup(ctx context.Context, ask GroupAsk) (*GroupInfo, error) {
	return call[GroupInfo](ctx, c, http.MethodPost, "/v1/groups", ask)
}

// DeleteGroup removes a group that is not active, for good.
func (c *Client) DeleteGroup(ctx context.Context, group string) (*DeleteResult, error) {
	return call[DeleteResult](ctx, c, http.MethodDelete, "/v1/groups/"+url.PathEscape(group), nil)
}

// SetActive activates or deactivates a group.
func (c *Client) SetActive(ctx context.Context, group string, active bool) (*GroupInfo, error) {
	verb := "/deactivate"
	if active {
		verb = "/activate"
	}
	return call[GroupInfo](ctx, c, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+verb, nil)
}

// IssueToken has the embedded AS issue an access token.
func (c *Client) IssueToken(ctx context.Context, ask TokenAsk) (*TokenInfo, error) {
	return call[TokenInfo](ctx, c, http.MethodPost, "/v1/tokens", ask)
}

// RevokeTokens ends access tokens, each in hex or as the hex of its token hash.
func (c *Client) RevokeTokens(ctx context.Context, tokens []string) (*RevokeResult, error) {
	return call[RevokeResult](ctx, c, http.MethodPost, "/v1/tokens/revoke", RevokeAsk{tokens})
}

// maxAnswer bounds an answer: a group of 100,000 members has about 20 MB.
const maxAnswer = 256 << 20

// call does one request. The error is a [*Problem] when the gateway refused,
// and wraps ErrNotRunning when there is none.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	if body == nil {
		return send[T](ctx, c, method, path, "", nil)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return send[T](ctx, c, method, path, "application/json", bytes.NewReader(b))
}

// send is call with a body of any type.
func send[T any](ctx context.Context, c *Client, method, path, contentType string, payload io.Reader) (*T, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if payload != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("admin: %w at %s", ErrNotRunning, c.base)
	}
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		p := &Problem{}
		if err := dec.Decode(p); err != nil || p.Status != resp.StatusCode {
			return nil, fmt.Errorf("admin: %s answers %s: another program?", c.base, resp.Status)
		}
		return nil, p
	}
	v := new(T)
	if err := dec.Decode(v); err != nil {
		return nil, fmt.Errorf("admin: %s: answer is not understood (another program?): %w", c.base, err)
	}
	return v, nil
}

// WaitReady polls /readyz until the gateway is ready or ctx ends.
func (c *Client) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("admin: %w", err)
		}
		if resp, err := c.http.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("admin: waiting for %s: %w", c.base, ctx.Err())
		}
	}
}
