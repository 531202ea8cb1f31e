package guard

import (
	"context"
	"fmt"

	"saru/netfilter/mend"
)

// Watch looks after the table until ctx ends, and then returns nil. It installs it at once when it is missing, and
// again within milliseconds after somebody has deleted or changed it, as "nft flush ruleset" does. Each time it calls
// onMend with what had happened, after the table is right again. It returns an error when it cannot listen, or when the
// table could not be put right for about 10 s.
func Watch(ctx context.Context, cfg Config, onMend func(why string)) error {
	cfg, err := cfg.check()
	if err != nil {
		return err
	}
	t := mend.Table{Name: cfg.Table, Mend: func() (string, error) { return putRight(cfg) }, OnMend: onMend}
	if err := t.Run(ctx); err != nil {
		return fmt.Errorf("guard the tap: %w", err)
	}
	return nil
}

// putRight looks at the table, installs it if it is not right, and looks again.
func putRight(cfg Config) (why string, err error) {
	if why, err = inspect(cfg); why == "" || err != nil {
		return "", err
	}
	if err := install(cfg); err != nil {
		return "", fmt.Errorf("%s: %w", why, err)
	}
	still, err := inspect(cfg)
	if err != nil {
		return "", err
	}
	if still != "" {
		return "", fmt.Errorf("right after it was installed: %s", still)
	}
	return why, nil
}
