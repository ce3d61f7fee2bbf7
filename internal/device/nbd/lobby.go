package nbd

import "crypto/tls"

// lobby is what a client meets before it has chosen an export: a server has one to offer, a hub many. The methods may be called concurrently.
type lobby interface {
	// security returns how TLS is spoken, nil if not at all, and whether anything else may be said without.
	security() (cfg *tls.Config, required bool)
	// find returns the server of the export that a client means by name, nil if there is none.
	find(name string) *Server
	// exports names what there is.
	exports() []string
	// entered tells that c has become a user of an export. It is called before the client hears that.
	entered(c *conn)
}

var (
	_ lobby = (*Server)(nil)
	_ lobby = (*Hub)(nil)
)

func (s *Server) security() (*tls.Config, bool) { return s.cfg.TLS, s.cfg.TLSRequired }

func (s *Server) find(name string) *Server {
	if name == "" || name == s.cfg.Export {
		return s
	}
	return nil
}

func (s *Server) entered(*conn) {}

func (s *Server) exports() []string { return []string{s.cfg.Export} }
