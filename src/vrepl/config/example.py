"""The configuration that `vrepl config init` writes: valid as it stands, every key explained."""

EXAMPLE = """\
# vrepl configuration. `vrepl config validate` checks it, `vrepl config show` shows the effective values.
# Relative paths are taken from the folder of this file.

# ---- Sites: vCenter Servers or standalone ESXi hosts ------------------------------------------------------------

[sites.prod]
server = "vcenter.prod.example.com"
# port = 443
user = "vrepl@vsphere.local"
# A password never stands here. One of:
#   { file = "PATH" }              a file that only the user running vrepl can read (mode 600)
#   { credential = "NAME" }        systemd LoadCredential= / LoadCredentialEncrypted=
#   { command = ["pass", "x"] }    the first line that a command prints; no shell, 30 s
#   { keyring = "SERVICE/USER" }   the desktop's or server's keyring
#   { env = "NAME" }               an environment variable
password = { file = "/etc/vrepl/secrets/prod" }
# How the server's certificate is trusted. Neither: the system's CAs.
# ca_file = "/etc/vrepl/prod-ca.pem"
# thumbprint_sha256 = "AB:CD:…"        # 64 hexadecimal digits
# nfc_port = 902                         # of the ESXi hosts, for gateways that move it
# nfc_compression = "skipz"              # on slow links, without VDDK: hosts leave out zeros
# bandwidth = "100 MiB/s"                # to or from this site; windows as in a job
# task_timeout_minutes = 240             # a task of vSphere that takes longer fails the run

[sites.dr]
server = "vcenter.dr.example.com"
user = "vrepl@vsphere.local"
password = { file = "/etc/vrepl/secrets/dr" }

# ---- Where vrepl keeps what it knows of the replicas ------------------------------------------------------------

[repository]
path = "/var/lib/vrepl"

# ---- VDDK (Virtual Disk Development Kit), unpacked here; without it vrepl opens disks over NBD by itself ----------

[vddk]
# libdir = "/opt/vmware-vix-disklib-distrib"
# engine = "auto"              # "vddk", "own", or VDDK where it is installed
# nfc_buffer_kib = 1024        # one buffer, a multiple of 64
# nfc_buffer_count = 4         # buffers in flight per disk
# access_wait = "10m"          # for a VM that another product keeps from being moved

# ---- What a job may name as its proxy: another machine, or (without ssh) this one with other facts -------------

# [proxies.proxy-1]
# ssh = "root@proxy-1"         # as ssh takes it; then: vrepl proxy install; none: this machine
# ssh_config = "ssh_config"    # default: the user's
# python = "python3.12"        # the Python to take there
# address = "proxy-1"          # where movers of the other site connect to; default: the host in ssh
# listen = true                # whether they may
# ports = "47100-47131"        # that movers there may listen on; none: any
# libdir = "/opt/vmware-vix-disklib-distrib"
# sysroot = "/"                # where it finds sys/class/dmi/id/product_uuid and dev/disk/by-id
# sites = ["prod", "dr"]       # sites that it serves; none: all
# slots = 4                    # disks at once

# ---- Jobs -------------------------------------------------------------------------------------------------------

[jobs.web]
source = "prod"
target = "dr"
vms = ["web-01", "db-01"]
# A name may be a pattern ("web-*"), and VMs may be selected by what they are, anew at every run:
# select = { tags = ["Backup/Gold"], folders = ["dc/prod"], exclude = { names = ["*-test"] } }
# allow_empty = false          # whether a run may find no VM at all
# skip_disks = { "db-*" = [1] }   # disks that are left out, by number
target_datastore = "dr-vmfs-01"
# disk_datastores = { "prod-ssd-*" = "dr-ssd-01", "*" = "dr-*" }   # by the source's datastore, the first that fits:
#                              # a name, "same-name", or a pattern (the one with the most free)
# target_cluster = "dr-cluster"   # default: any host that mounts the datastores
# target_host = "esx-1.dr.example.com"   # default: a host that sees the datastore
# target_folder = "Replicas/Web"   # made where it is missing
# target_resource_pool = "Resources"
# networks = { "VM Network" = "DR Network", "Backup" = "disconnected" }   # others keep their name
# replica_name = "{name}-replica"
# every = "15m"                # how often cron or a timer runs it: `config validate` says how far back it reaches
# rpo = "30m"                  # how old the last good restore point may be; `vrepl status` tells where it is older
# audit = "30d"                # in how long all that CBT calls unchanged is read and compared once; "off"
# quiesce = "prefer"           # require | prefer | never
# enable_cbt = "always"        # or "powered-off", "never"
# carry = ["reservations", "notes"]   # what else replicas have of their sources
# on_resize = "refuse"         # refuse | restart (a new disk on the replica; restore points stay)
# on_not_replicable = "fail"   # fail | skip-disk
# keep_macs = false
# thin = "source"              # true | false | "source" (as the source's disk is)
# parallel_vms = "auto"        # VMs at once: as many as the limits below keep busy; or a number
# parallel_disks = 4
# nfc_budget_mib = 32          # NFC buffers per ESXi host
# readback = "sample"          # without VDDK: how much of what was written is read back; or "all"
# vcenter_connections = 40
# snapshots_per_datastore = 4  # source snapshots open at once
# proxy = "proxy-1"            # default: this machine, with [vddk]; one for each side:
# proxy = { source = "proxy-1", target = "proxy-1" }
# bandwidth = "50 MiB/s"       # or:
# bandwidth = { limit = "50 MiB/s", windows = { "22:00-06:00" = "unlimited" } }

[jobs.web.guest]
# Scripts around the source snapshot; those of the guest are files of this machine, which are uploaded to it:
# pre_freeze = "/etc/vrepl/scripts/freeze.sh"
# post_thaw = "/etc/vrepl/scripts/thaw.sh"      # on every way out
logins = { "web-*" = { user = "vrepl", password = { file = "/etc/vrepl/secrets/guest" } } }
# host_pre_freeze = "/usr/local/bin/hold-queue"   # a command of this machine
# host_post_thaw = "/usr/local/bin/release-queue"
# script_timeout = "60s"
# frozen_at_most = "5m"        # post_thaw runs then, even where the snapshot is not there yet
# on_script_failure = "fail"   # fail | continue
# quiesce_tries = 1            # quiesced snapshots to try
# quiesce_timeout = "15m"      # for each

[jobs.web.failover]
# networks = { "Idle" = "VM Network" }   # replica's network = network while it is failed over
# Addresses of guests at the target, by vCenter's guest customisation; the first rule that means an address counts:
# the host's part is kept, gateways and name servers follow.
# addresses = ["10.1.0.0/16 -> 10.2.0.0/16", { network = "storage", new = "dhcp" }]
# { vms = "db-01", new = "10.2.9.5/24", gateway = "10.2.9.1" } is a rule for one VM.
# dns = ["10.2.0.53"]          # instead of what the rules make of the guest's own
# dns_suffixes = ["dr.example.com"]
# domain = "example.com"       # of Linux guests that report none
# on_address_failure = "start" # with the addresses that it has; or "stop": it stays off
# address_wait = "10m"         # from power-on until it must report its new addresses
# sysprep = { time_zone = 85, workgroup = "WORKGROUP" }   # Windows: a new SID, and out of its domain

[jobs.web.retention]
last = 7                       # 1..28; all of these together are at most 28
# hourly = 0
# daily = 0
# weekly = 0
# monthly = 0

[jobs.web.transport]
# In the order of preference: san, hotadd, nbdssl; nbd (not encrypted) is used only where it is listed.
source = ["san", "hotadd", "nbdssl"]
target = ["san", "hotadd", "nbdssl"]
fallback = true                # try the next mode when one fails; always reported

# ---- Failover plans: what starts in which order (vrepl failover start --plan site); docs/failover.md --------------

[plans.site]
gates = "heartbeat"            # before the next group; or a list: heartbeat, port:N, script:COMMAND
# gate_timeout = "5m"          # from power-on
# power_ons_per_host = 4       # under way at once on one ESXi host
# on_failure = "stop"          # or "continue": go on without what did not come up
# before = "/usr/local/bin/announce-failover"   # a command of this machine before the first group
# after = "/usr/local/bin/switch-dns"           # and once the last one is there
# script_timeout = "5m"        # for each of the two

[[plans.site.groups]]
name = "databases"
vms = [{ name = "db-01", gates = ["heartbeat", "port:5432"] }]

[[plans.site.groups]]
name = "web"
vms = ["web-*"]                # a pattern means every replica that no group names
delay = "30s"                  # from the moment that the group before is there

# ---- Who is told how runs went: docs/monitoring.md --------------------------------------------------------------
[notify]
# on_finish = "/usr/local/bin/tell-me"                     # gets the report as JSON on standard input
# urls = [{ file = "/etc/vrepl/secrets/mail-url" }]        # Apprise; pip install 'vrepl[notify]'
# ping = { file = "/etc/vrepl/secrets/ping-url" }          # healthchecks.io and its like

[report]
# html = "/var/www/vrepl"                               # pages; pip install 'vrepl[html]'

[metrics]
# textfile = "/var/lib/prometheus/node-exporter/vrepl.prom"   # pip install 'vrepl[metrics]'
"""
