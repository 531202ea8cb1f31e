# What `make install` installs beside the programs: manuals, init script, unit,
# configuration, completions. Included by the Makefile, which installs the programs;
# `make -f packaging/install.mk install-files` works by itself.
#
# DESTDIR  is put before every path and becomes part of no file (for packages)
# PREFIX   as in the Makefile: /usr for a distribution's package

PREFIX     ?= /usr/local
SBINDIR    ?= $(PREFIX)/sbin
MANDIR     ?= $(PREFIX)/share/man
UNITDIR    ?= $(PREFIX)/lib/systemd/system
COMPDIR    ?= $(PREFIX)/share/bash-completion/completions
SYSCONFDIR ?= /etc
RUNDIR     ?= /run

PACKAGING  := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))

# substitute IN,OUT,MODE: paths into a template.
define substitute
sed -e 's|@SBINDIR@|$(SBINDIR)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' -e 's|@RUNDIR@|$(RUNDIR)|g' $(1) >'$(DESTDIR)$(2)'
chmod $(3) '$(DESTDIR)$(2)'
endef

.PHONY: install
install: install-files

.PHONY: install-files
install-files:
	install -d '$(DESTDIR)$(MANDIR)/man5' '$(DESTDIR)$(MANDIR)/man8' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(COMPDIR)' \
		'$(DESTDIR)$(SYSCONFDIR)/init.d' '$(DESTDIR)$(SYSCONFDIR)/saru'
	install -m 0644 $(PACKAGING)/../man/*.5 '$(DESTDIR)$(MANDIR)/man5'
	install -m 0644 $(PACKAGING)/../man/*.8 '$(DESTDIR)$(MANDIR)/man8'
	install -m 0644 $(PACKAGING)/completion/syncd.bash '$(DESTDIR)$(COMPDIR)/syncd'
	install -m 0644 $(PACKAGING)/completion/saructl.bash '$(DESTDIR)$(COMPDIR)/saructl'
	$(call substitute,$(PACKAGING)/systemd/syncd.service.in,$(UNITDIR)/syncd.service,0644)
	$(call substitute,$(PACKAGING)/init/syncd.in,$(SYSCONFDIR)/init.d/syncd,0755)
	@# The operator's own configuration stays.
	test -e '$(DESTDIR)$(SYSCONFDIR)/saru/syncd.conf' || \
		install -m 0644 $(PACKAGING)/etc/syncd.conf '$(DESTDIR)$(SYSCONFDIR)/saru/syncd.conf'

.PHONY: uninstall
uninstall: ## remove what install has installed; configuration and keys stay
	rm -f '$(DESTDIR)$(SBINDIR)/syncd' '$(DESTDIR)$(SBINDIR)/saructl' \
		'$(DESTDIR)$(COMPDIR)/syncd' '$(DESTDIR)$(COMPDIR)/saructl' \
		'$(DESTDIR)$(MANDIR)/man5/syncd.conf.5' '$(DESTDIR)$(MANDIR)/man8/syncd.8' '$(DESTDIR)$(MANDIR)/man8/saructl.8' \
		'$(DESTDIR)$(UNITDIR)/syncd.service' '$(DESTDIR)$(SYSCONFDIR)/init.d/syncd'
