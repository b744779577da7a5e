# Runs as root in a booted Debian, by bash -eux.
exec 2>&1

pid() { systemctl show --property=MainPID --value soci-snapshotter.service; }
# Another process serves than $1.
another() {
    for _ in $(seq 100); do
        if [ "$(pid)" != 0 ] && [ "$(pid)" != "$1" ] && soci inspect --json; then return; fi
        sleep 0.1
    done
    systemctl status soci-snapshotter.service
    journalctl --no-pager -n 50
    return 1
}
failed() { systemctl --failed --no-legend --plain | cut -d' ' -f1 | grep soci || true; }

# Installed, it runs.
dpkg -i /spanshot.deb
[ "$(systemctl is-enabled soci-snapshotter.service soci-snapshotter.socket | sort -u)" = enabled ]
systemctl is-active soci-snapshotter.service soci-snapshotter.socket
another 0
soci --version
soci-snapshotter-grpc --version
soci-snapshotter-grpc config check
[ "$(stat -c %a /run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock)" = 660 ]
[ "$(stat -c %a /var/lib/soci-snapshotter-grpc)" = 700 ]
[ "$(systemctl show --property=OOMScoreAdjust --value soci-snapshotter.service)" = -999 ]
[ -s /usr/share/man/man1/soci-inspect.1.gz ]
dpkg --verify spanshot
# What the unit forbids leaves it user namespaces, which carry mappings of ids.
restricted=$(sed -n 's/^\(RestrictNamespaces=.*\)/\1/p' /lib/systemd/system/soci-snapshotter.service)
unit=/run/systemd/system/mapping.service
printf '[Service]\nType=oneshot\nNoNewPrivileges=yes\n%s\nExecStart=/usr/bin/soci-snapshotter-grpc user-namespace\n' "$restricted" >"$unit"
systemctl daemon-reload
systemctl start mapping.service
rm "$unit"
systemctl daemon-reload

# Asked to read its configuration again it goes on; started again, another serves. Its log tells of both.
before=$(pid)
systemctl reload soci-snapshotter
[ "$(pid)" = "$before" ]
systemctl restart soci-snapshotter
another "$before"
journalctl -u soci-snapshotter -o cat | grep 'configuration has been read again'
# Not below one that runs.
if soci-snapshotter-grpc unmount; then exit 1; fi

# Killed, it comes back.
before=$(pid)
kill -9 "$before"
another "$before"

# Upgraded, the new one takes over; what the administrator wrote stays.
before=$(pid)
printf '\n# mine\n' >>/etc/soci-snapshotter-grpc/config.toml
dpkg -i --force-confold /spanshot.deb
another "$before"
grep -q '# mine' /etc/soci-snapshotter-grpc/config.toml
# One that was switched off is not started by an upgrade.
systemctl disable --now soci-snapshotter.service soci-snapshotter.socket
dpkg -i --force-confold /spanshot.deb
[ "$(systemctl is-active soci-snapshotter.service || true)" = inactive ]
soci-snapshotter-grpc unmount
systemctl enable --now soci-snapshotter.socket soci-snapshotter.service
[ -z "$(failed)" ]

# Removed, nothing of it runs, and its state stays.
dpkg -r spanshot
[ -z "$(pgrep -f soci-snapshotter-grpc || true)" ]
[ -z "$(findmnt -n -o TARGET | grep soci || true)" ]
! systemctl cat soci-snapshotter.service
[ -d /var/lib/soci-snapshotter-grpc ]
grep -q '# mine' /etc/soci-snapshotter-grpc/config.toml

# Purged, nothing is left.
dpkg -i --force-confold /spanshot.deb
another 0
dpkg -P spanshot
left=$(find / -xdev \( -name '*soci*' -o -name '*spanshot*' \) ! -path '/proc/*' ! -path '/sys/*' ! -path '/var/lib/systemd/*' ! -path '/spanshot.deb' ! -path '/by-hand/*' ! -path '/var/log/*')
[ -z "$left" ]

# Installed by hand, as the page says, it runs as well.
(cd /by-hand && bash -eux /by-hand.sh)
hash -r
another 0
[ "$(readlink -f "/proc/$(pid)/exe")" = /usr/local/bin/soci-snapshotter-grpc ]
echo "all of it is done"
