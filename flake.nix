{
  description = "Hyper-NixOS: deduplicated storage for virtual machines, over NBD";

  # Go 1.26 is what the module needs.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      forAll = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
    in
    {
      packages = forAll (pkgs: rec {
        hyper-nixos = pkgs.callPackage ./nix/package.nix { version = self.shortRev or "development"; };
        default = hyper-nixos;
      });

      nixosModules.default = import ./nix/module.nix self;

      devShells = forAll (pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [ go_1_26 gnumake qemu nbdkit libnbd fio e2fsprogs xz ];
        };
      });
    };
}
