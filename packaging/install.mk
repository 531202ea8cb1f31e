# What `make install` installs beside the programs: manuals, init scripts, units,
# configurations, completions. Included by the Makefile, which installs the programs;
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

DAEMONS    := syncd saru
UNITS      := syncd.service saru.service saru-closed.service
INITS      := syncd saru saru-closed
MANUALS    := $(notdir $(wildcard $(PACKAGING)/../man/*.[58]))
PROGRAMS   := $(DAEMONS) saructl

# substitute IN,OUT,MODE: paths, and the common part of init scripts, into a template.
define substitute
	sed -e '/^@COMMON@$$/r $(PACKAGING)/init/common.in' -e '/^@COMMON@$$/d' $(1) | \
		sed -e 's|@SBINDIR@|$(SBINDIR)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' -e 's|@RUNDIR@|$(RUNDIR)|g' >'$(DESTDIR)$(2)'
	chmod $(3) '$(DESTDIR)$(2)'

endef

.PHONY: install
install: install-files

.PHONY: install-files
install-files:
	install -d '$(DESTDIR)$(MANDIR)/man5' '$(DESTDIR)$(MANDIR)/man8' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(COMPDIR)' \
		'$(DESTDIR)$(SYSCONFDIR)/init.d' '$(DESTDIR)$(SYSCONFDIR)/saru'
	install -m 0644 $(patsubst %,$(PACKAGING)/../man/%,$(filter %.5,$(MANUALS))) '$(DESTDIR)$(MANDIR)/man5'
	install -m 0644 $(patsubst %,$(PACKAGING)/../man/%,$(filter %.8,$(MANUALS))) '$(DESTDIR)$(MANDIR)/man8'
	$(foreach p,$(PROGRAMS),install -m 0644 $(PACKAGING)/completion/$(p).bash '$(DESTDIR)$(COMPDIR)/$(p)' &&) :
	$(foreach u,$(UNITS),$(call substitute,$(PACKAGING)/systemd/$(u).in,$(UNITDIR)/$(u),0644))
	$(foreach i,$(INITS),$(call substitute,$(PACKAGING)/init/$(i).in,$(SYSCONFDIR)/init.d/$(i),0755))
	@# The operator's own configuration stays.
	$(foreach d,$(DAEMONS),test -e '$(DESTDIR)$(SYSCONFDIR)/saru/$(d).conf' || \
		install -m 0644 $(PACKAGING)/etc/$(d).conf '$(DESTDIR)$(SYSCONFDIR)/saru/$(d).conf' || exit;) :

.PHONY: uninstall
uninstall: ## remove what install has installed; configuration and keys stay
	rm -f $(foreach p,$(PROGRAMS),'$(DESTDIR)$(SBINDIR)/$(p)' '$(DESTDIR)$(COMPDIR)/$(p)') \
		$(foreach m,$(MANUALS),'$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(m)))/$(m)') \
		$(foreach u,$(UNITS),'$(DESTDIR)$(UNITDIR)/$(u)') $(foreach i,$(INITS),'$(DESTDIR)$(SYSCONFDIR)/init.d/$(i)')
