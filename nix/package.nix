# The two programs, static, with shell completion. The tests need apt, qemu and a network for the guest's kernel: `make test` runs them.
{ lib, buildGo126Module, installShellFiles, stdenv, version ? "development" }:

buildGo126Module {
  pname = "hyper-nixos";
  inherit version;
  src = lib.cleanSource ../.;

  # Of the folder that `go mod vendor` makes. After a change of go.mod: scripts/vendor-hash prints it.
  vendorHash = "sha256-W9FSCqb6ak5KxPwyw8OwmUrZ9K0tzsTPPmJ5j13NSJ8=";

  subPackages = [ "cmd/hvd" "cmd/hv-storage-fabric" ];
  env.CGO_ENABLED = 0;
  ldflags = [ "-s" "-w" "-X main.version=${version}" ];
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for shell in bash fish zsh; do
      $out/bin/hv-storage-fabric completion $shell > hv-storage-fabric.$shell
    done
    installShellCompletion hv-storage-fabric.{bash,fish,zsh}
  '';

  meta = {
    description = "Deduplicated storage for virtual machines, over NBD";
    homepage = "https://github.com/hyper-nixos/hyper-nixos";
    platforms = lib.platforms.linux;
    mainProgram = "hv-storage-fabric";
  };
}
