package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/spf13/cobra"

	"saru/lib/config"
)

// keyBytes is the length of a new key: as long as what HMAC-SHA256 returns, the
// length that RFC 2104, section 3, recommends.
const keyBytes = 32

func (a *app) genkeyCommand() *cobra.Command {
	id := uint8(1)
	cmd := &cobra.Command{
		Use:   "genkey",
		Short: "Print a new key file",
		Long: `Print a key file with a new random key on standard output. It is the same on
every director of a farm:

  (umask 077; saructl genkey >/etc/saru/keys)

To change keys without a gap: add the line of a new key with another --id at the
end of the file on every director and reload, then move it to the top on every
director and reload, then remove the old one and reload.`,
		Args: cobra.NoArgs,
		RunE: action(func(*cobra.Command, []string) error {
			key := make([]byte, keyBytes)
			rand.Read(key) // never fails: crypto/rand ends the program instead
			if a.json {
				return a.printJSON(struct {
					ID  uint8  `json:"id"`
					Key string `json:"key"`
				}{id, hex.EncodeToString(key)})
			}
			_, err := fmt.Fprintf(a.out, `# Keys of this farm of directors: the same file on each of them, owner root,
# mode 0600. A line is "ID HEX". The first key signs, all of them verify.
%d %s
`, id, hex.EncodeToString(key))
			return err
		}),
	}
	cmd.Flags().Var(config.Value(&id, "N", config.Between[uint8](1, 255)), "id", "`number` of the key, 1 to 255")
	return cmd
}
