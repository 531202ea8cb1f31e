package transfer

import (
	"crypto/rand"
	"fmt"

	"saru/lib/peer"
	"saru/lib/seal"
	wire "saru/proto/transfer"
)

// newHello returns the hello of this director for one connection.
func newHello(role wire.Role, node peer.ID, inc peer.Incarnation, auth *Auth) wire.Hello {
	h := wire.Hello{KeyID: auth.keyID(), Role: role, Node: uint64(node), Incarnation: uint64(inc), Group: auth.group()}
	rand.Read(h.Nonce[:]) // never fails (crypto/rand since Go 1.24)
	return h
}

// sendHello writes a hello.
func (l *link) sendHello(h *wire.Hello) error {
	return l.writeRaw(wire.AppendHello(make([]byte, 0, wire.HelloLen), h))
}

// readHello reads the other side's hello.
func (l *link) readHello() (wire.Hello, error) {
	var b [wire.HelloLen]byte
	if err := l.readDeadline(); err != nil {
		return wire.Hello{}, err
	}
	if err := l.readFull(b[:]); err != nil {
		return wire.Hello{}, fmt.Errorf("read hello: %w", err)
	}
	h, err := wire.ParseHello(b[:])
	if err != nil {
		return wire.Hello{}, fmt.Errorf("read hello: %w", err)
	}
	return h, nil
}

// agree checks the other side's hello, the one that is not own, and derives the keys of both directions.
func (l *link) agree(auth *Auth, own, other *wire.Hello) error {
	switch {
	case other.Node == own.Node && other.Incarnation == own.Incarnation || other.Nonce == own.Nonce:
		return ErrReflected
	case other.Role == own.Role:
		return wire.ErrHello
	case other.Group != own.Group:
		return ErrGroup
	case other.KeyID == 0 && auth.RequireSigned:
		return ErrUnsigned
	case other.KeyID != 0 && auth.Ring == nil:
		return seal.ErrUnknownKey
	}
	client, teacher := own, other
	if own.Role == wire.RoleTeacher {
		client, teacher = other, own
	}
	salt := append(client.Nonce[:len(client.Nonce):len(client.Nonce)], teacher.Nonce[:]...)
	var err error
	if l.out, err = direction(auth, own, client, teacher, salt); err != nil {
		return err
	}
	l.in, err = direction(auth, other, client, teacher, salt)
	return err
}

// direction derives the key of what sender sends; nil: it does not sign. All that the hellos say is part of it, so that nobody on the way can have
// changed anything.
func direction(auth *Auth, sender, client, teacher *wire.Hello, salt []byte) (*seal.Stream, error) {
	if sender.KeyID == 0 {
		return nil, nil
	}
	info := fmt.Appendf(nil, "saru 1 pull %d ", sender.Role)
	info = wire.AppendHello(wire.AppendHello(info, client), teacher)
	return auth.Ring.Stream(sender.KeyID, salt, string(info))
}
