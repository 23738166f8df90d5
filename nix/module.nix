# services.hyper-nixos: hvd as a systemd service. Its settings are those of docs/hvd.md, under the same names as in its config file.
self:
{ config, lib, pkgs, ... }:

let
  cfg = config.services.hyper-nixos;
  yaml = pkgs.formats.yaml { };
  dataDir = cfg.settings.data-dir;
  disks = lib.filter (disk: disk != "") (map lib.trim (lib.splitString "," (cfg.settings.store.disks or "")));
  repositories = cfg.settings.repository.dir or "";
  overTCP = lib.any (section: (cfg.settings.${section}.listen or "off") != "off") [ "nbd" "replication" "repository" ];
  isDefaultDir = dataDir == "/var/lib/hyper-nixos";
  configFile = yaml.generate "hvd.yaml" cfg.settings;
in
{
  options.services.hyper-nixos = {
    enable = lib.mkEnableOption "hvd, the storage daemon of Hyper-NixOS";

    package = lib.mkOption {
      type = lib.types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      defaultText = lib.literalExpression "hyper-nixos";
      description = "Package with hvd and hv-storage-fabric.";
    };

    user = lib.mkOption {
      type = lib.types.str;
      default = "hyper-nixos";
      description = "User that hvd runs as. This user and root may use the control socket.";
    };

    settings = lib.mkOption {
      description = "Settings of hvd, as in its config file (`hvd config schema`). An unknown one stops the build of the system.";
      default = { };
      example = lib.literalExpression ''{ memory = "1GiB"; store.log-cap = "8GiB"; }'';
      type = lib.types.submodule {
        freeformType = yaml.type;
        options.data-dir = lib.mkOption {
          type = lib.types.path;
          default = "/var/lib/hyper-nixos";
          description = "Directory that holds the store.";
        };
        options.nbd.volume-socket-dir = lib.mkOption {
          type = lib.types.path;
          default = "/run/hyper-nixos/nbd";
          description = "Directory of the sockets of single volumes, which users such as libvirt's can reach.";
        };
      };
    };

    backups = {
      enable = lib.mkEnableOption "the timer that runs backups when policies are due (`hv-backup policy set`, as root)";
      interval = lib.mkOption {
        type = lib.types.str;
        default = "*:0/5";
        description = "How often to look whether one is due, as a calendar event of systemd.";
      };
      qemu = lib.mkOption {
        type = lib.types.nullOr lib.types.package;
        default = null;
        example = lib.literalExpression "pkgs.qemu_kvm";
        description = "QEMU for the restore tests of policies (`--test-restore`), with qemu-system-x86_64.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    # Settings that hvd would refuse are found when the system is built.
    system.checks = [
      (pkgs.runCommand "hvd-config-check" { } ''
        ${lib.getExe' cfg.package "hvd"} config check --config ${configFile} && touch $out
      '')
    ];

    users.users = lib.mkIf (cfg.user == "hyper-nixos") {
      hyper-nixos = {
        isSystemUser = true;
        group = "hyper-nixos";
        home = dataDir;
      };
    };
    users.groups = lib.mkIf (cfg.user == "hyper-nixos") { hyper-nixos = { }; };

    systemd.tmpfiles.rules = lib.mkIf (!isDefaultDir) [ "d ${dataDir} 0700 ${cfg.user} - - -" ];

    systemd.timers.hv-backup = lib.mkIf cfg.backups.enable {
      description = "Backups that are due";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cfg.backups.interval;
        Persistent = true;
      };
    };
    systemd.services.hv-backup = lib.mkIf cfg.backups.enable {
      description = "Backups that are due";
      after = [ "hyper-nixos.service" "network-online.target" ];
      wants = [ "network-online.target" ];
      path = lib.optional (cfg.backups.qemu != null) cfg.backups.qemu;
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${lib.getExe' cfg.package "hv-backup"} policy run --due";
        Environment = "HV_ENDPOINT=unix:/run/hyper-nixos/hvd.sock";
        StateDirectory = "hv-backup";
        StateDirectoryMode = "0700";
        UMask = "0077";
        Nice = 10;
        IOSchedulingClass = "idle";
        NoNewPrivileges = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        LockPersonality = true;
        RestrictSUIDSGID = true;
      };
    };

    systemd.services.hyper-nixos = {
      description = "Hyper-NixOS storage daemon";
      documentation = [ "https://github.com/hyper-nixos/hyper-nixos" ];
      wantedBy = [ "multi-user.target" ];
      # An address to listen on must be there.
      after = [ "local-fs.target" (if overTCP then "network-online.target" else "network.target") ];
      wants = lib.optional overTCP "network-online.target";
      # Guests go away before their disks do.
      before = [ "libvirtd.service" "libvirt-guests.service" ];
      unitConfig.RequiresMountsFor = dataDir;

      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe' cfg.package "hvd"} --config ${configFile}";
        Restart = "on-failure";
        RestartSec = "1s";
        # Opening replays the log; stopping finishes what is in flight, for nbd.drain-timeout.
        TimeoutStartSec = "5min";
        TimeoutStopSec = "2min";
        User = cfg.user;
        UMask = "0077";
        StateDirectory = lib.mkIf isDefaultDir "hyper-nixos";
        StateDirectoryMode = "0700";
        # Others pass through to the sockets of single volumes; each of those has an owner and a mode.
        RuntimeDirectory = [ "hyper-nixos" "hyper-nixos/nbd" ];
        RuntimeDirectoryMode = "0755";
        RuntimeDirectoryPreserve = "restart";
        # A disk that is lost must not keep hvd from starting.
        ReadWritePaths = lib.optional (!isDefaultDir) dataDir ++ map (disk: "-${disk}") disks ++ lib.optional (repositories != "") "-${repositories}";
        LimitNOFILE = 65536;
        OOMScoreAdjust = -500;

        # `attach --owner` gives a socket to another user.
        CapabilityBoundingSet = [ "CAP_CHOWN" ];
        AmbientCapabilities = [ "CAP_CHOWN" ];
        NoNewPrivileges = true;
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateTmp = true;
        PrivateDevices = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        # Not ProcSubset: hvd reads which boot of the machine this is.
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        RemoveIPC = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = "@system-service";
        SystemCallErrorNumber = "EPERM";
      };
    };
  };
}
