# make install: programs, manuals, init script, unit, configuration.
# Included by the Makefile; works by itself too: make -f packaging/install.mk install
#
# DESTDIR  is put before every path and is not part of any file (for packages)
# PREFIX   /usr/local, or /usr for a distribution's package

PREFIX     ?= /usr/local
SBINDIR    ?= $(PREFIX)/sbin
MANDIR     ?= $(PREFIX)/share/man
UNITDIR    ?= $(PREFIX)/lib/systemd/system
COMPDIR    ?= $(PREFIX)/share/bash-completion/completions
SYSCONFDIR ?= /etc
RUNDIR     ?= /run
# Where the programs have been built.
BINDIR     ?= bin

INSTALL    ?= install
PACKAGING  := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
MANPAGES   := $(PACKAGING)/../man
INSTALLED  := syncd saructl

# substitute IN,OUT,MODE: paths into a template.
define substitute
sed -e 's|@SBINDIR@|$(SBINDIR)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' -e 's|@RUNDIR@|$(RUNDIR)|g' $(1) >$(DESTDIR)$(2)
chmod $(3) $(DESTDIR)$(2)
endef

.PHONY: install uninstall

# Building is for the one who develops, installing often for root.
install:
	@for p in $(INSTALLED); do test -x $(BINDIR)/$$p || { echo "install: $(BINDIR)/$$p is missing: make build first" >&2; exit 1; }; done
	$(INSTALL) -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(UNITDIR) \
		$(DESTDIR)$(COMPDIR) $(DESTDIR)$(SYSCONFDIR)/init.d $(DESTDIR)$(SYSCONFDIR)/saru
	for p in $(INSTALLED); do $(INSTALL) -m 0755 $(BINDIR)/$$p $(DESTDIR)$(SBINDIR)/$$p || exit 1; done
	$(INSTALL) -m 0644 $(MANPAGES)/*.5 $(DESTDIR)$(MANDIR)/man5
	$(INSTALL) -m 0644 $(MANPAGES)/*.8 $(DESTDIR)$(MANDIR)/man8
	for p in $(INSTALLED); do $(INSTALL) -m 0644 $(PACKAGING)/completion/$$p.bash $(DESTDIR)$(COMPDIR)/$$p || exit 1; done
	$(call substitute,$(PACKAGING)/systemd/syncd.service.in,$(UNITDIR)/syncd.service,0644)
	$(call substitute,$(PACKAGING)/init/syncd.in,$(SYSCONFDIR)/init.d/syncd,0755)
	@# The operator's own configuration stays.
	test -e $(DESTDIR)$(SYSCONFDIR)/saru/syncd.conf || \
		$(INSTALL) -m 0644 $(PACKAGING)/etc/syncd.conf $(DESTDIR)$(SYSCONFDIR)/saru/syncd.conf

# Configuration and keys stay.
uninstall:
	for p in $(INSTALLED); do rm -f $(DESTDIR)$(SBINDIR)/$$p $(DESTDIR)$(COMPDIR)/$$p $(DESTDIR)$(MANDIR)/man8/$$p.8; done
	rm -f $(DESTDIR)$(MANDIR)/man5/syncd.conf.5 $(DESTDIR)$(UNITDIR)/syncd.service $(DESTDIR)$(SYSCONFDIR)/init.d/syncd
