package edge

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
)

// What a webhook URL must not be. The address itself is judged again at every dial, since names change.
var (
	errURL    = errors.New("must be an absolute https URL")
	errUser   = errors.New("must hold no user or password")
	errScheme = errors.New("must be https; http only to addresses that the operator allows")
	errPort   = errors.New("must use port 443; others only to addresses that the operator allows")
)

// urlAllowed judges a webhook URL by its text: https on 443, or anything at an address literal (or localhost) that the
// operator allowed.
func (e *edge) urlAllowed(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "" || len(text) > 2048 || u.Fragment != "":
		return errURL
	case u.User != nil:
		return errUser
	case u.Scheme != "https" && u.Scheme != "http":
		return errScheme
	case u.Port() != "" && !realPort(u.Port()):
		return errPort
	case e.own(u.Hostname()):
		return nil
	case u.Scheme != "https":
		return errScheme
	case u.Port() != "" && u.Port() != "443":
		return errPort
	}
	return nil
}

func realPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// own tells whether host is an address literal, or localhost, that the operator allows.
func (e *edge) own(host string) bool {
	if host == "localhost" {
		host = "127.0.0.1"
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	for _, p := range e.Allow {
		if p.Contains(a.Unmap().WithZone("")) {
			return true
		}
	}
	return false
}
