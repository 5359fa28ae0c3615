//! What a hostile or odd layer may do.

mod common;

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
};

use agents_core::error::ErrorKind;
use agents_image::{Limits, ResolveOptions};
use common::{TarBuilder, TestImage, World, gzip};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn layer(world: &World, tar: TarBuilder) -> PathBuf {
    let resolved = world
        .unpack(tar.bytes())
        .unwrap_or_else(|error| panic!("{}", error.report()));
    world.assert_clean();
    resolved.layers[0].clone()
}

fn opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(path, "user.overlay.opaque", &mut value).is_ok_and(|n| &value[..n] == b"y")
}

fn whiteout(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

#[test]
fn hostile_entries_are_refused_and_leave_nothing() {
    let long_component = "x".repeat(256);
    let cases: Vec<(&str, TarBuilder, &str)> = vec![
        ("parent", TarBuilder::new().file("../evil", b"x"), "leads out"),
        (
            "parent inside",
            TarBuilder::new().file("a/../../evil", b"x"),
            "leads out",
        ),
        ("parent folder", TarBuilder::new().dir("a/.."), "leads out"),
        (
            "hard link out",
            TarBuilder::new().hard_link("l", "../../../../etc/passwd"),
            "no earlier file",
        ),
        (
            "hard link to the host",
            TarBuilder::new().hard_link("l", "/etc/passwd"),
            "no earlier file",
        ),
        (
            "hard link to a folder",
            TarBuilder::new().dir("d").hard_link("l", "d"),
            "no earlier file",
        ),
        (
            "hard link to a later file",
            TarBuilder::new().hard_link("l", "f").file("f", b"x"),
            "no earlier file",
        ),
        (
            "hard link through a link",
            TarBuilder::new().symlink("etc", "/etc").hard_link("l", "etc/passwd"),
            "no earlier file",
        ),
        (
            "write through a link that leads nowhere",
            TarBuilder::new().symlink("l", "/nowhere").file("l/f", b""),
            "leads nowhere",
        ),
        (
            "write through a loop",
            TarBuilder::new().symlink("a", "b").symlink("b", "a").file("a/f", b""),
            "a/f",
        ),
        ("empty link", TarBuilder::new().symlink("l", ""), "empty name"),
        ("file as root", TarBuilder::new().file("/", b"x"), "the root"),
        (
            "long part of a name",
            {
                let header = TarBuilder::header(b'L', b"././@LongLink");
                let mut header = header;
                header.set_size(256);
                TarBuilder::new()
                    .raw(header, long_component.as_bytes())
                    .file("short", b"")
            },
            "longer than 255",
        ),
        (
            "whiteout of nothing",
            TarBuilder::new().file(".wh.", b""),
            "hides no name",
        ),
        (
            "whiteout of the parent",
            TarBuilder::new().file("a/.wh...", b""),
            "hides no name",
        ),
        (
            "unknown type",
            TarBuilder::new().raw(TarBuilder::header(b'Z', b"z"), b""),
            "unknown type",
        ),
        (
            "sparse",
            TarBuilder::new().raw(TarBuilder::header(b'S', b"z"), b""),
            "sparse",
        ),
    ];
    for (name, tar, message) in cases {
        let world = World::new();
        let error = world.unpack(tar.bytes()).expect_err(name);
        assert!(error.report().contains(message), "{name}: {}", error.report());
        assert!(
            matches!(error.kind(), ErrorKind::DataInvalid | ErrorKind::Unsupported),
            "{name}: {}",
            error.report()
        );
        assert!(
            !world.path("evil").exists() && !world.store.root().join("evil").exists(),
            "{name}"
        );
        world.assert_clean();
        assert_eq!(
            fs::read_dir(world.store.root().join("layers")).unwrap().count(),
            0,
            "{name}"
        );
    }
}

#[test]
fn damaged_streams_are_refused() {
    let tar = TarBuilder::new().file("f", &[7; 100_000]).bytes();
    let image = TestImage::gzipped(vec![tar.clone()]);
    let mut lying = TarBuilder::header(b'0', b"f");
    lying.set_size(1 << 40);
    let cases: Vec<(&str, TestImage, &str)> = vec![
        (
            "truncated gzip",
            {
                let cut = gzip(&tar)[..100].to_vec();
                TestImage::new(vec![(tar.clone(), cut)])
            },
            "truncated",
        ),
        (
            "damaged gzip",
            {
                let mut bytes = gzip(&tar);
                bytes[40..60].fill(0xff);
                TestImage::new(vec![(tar.clone(), bytes)])
            },
            "",
        ),
        (
            "size lie",
            TestImage::gzipped(vec![TarBuilder::new().raw(lying, b"x").bytes()]),
            "truncated",
        ),
        ("no tar at all", TestImage::gzipped(vec![vec![b'x'; 2000]]), "checksum"),
        (
            "another layer than promised",
            {
                let other = TarBuilder::new().file("other", b"").bytes();
                TestImage::new(vec![(tar.clone(), gzip(&other))])
            },
            "not what its digest promises",
        ),
        (
            "garbage behind gzip",
            {
                let mut bytes = gzip(&tar);
                bytes.extend_from_slice(b"garbage");
                TestImage::new(vec![(tar.clone(), bytes)])
            },
            "",
        ),
    ];
    for (name, image, message) in cases {
        let world = World::new();
        image.write_layout(&world.path("layout"), None);
        let error = world.resolve(world.path("layout").to_str().unwrap()).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::DataInvalid, "{name}: {}", error.report());
        assert!(error.report().contains(message), "{name}: {}", error.report());
        world.assert_clean();
    }
    // The bytes of a blob are not those of its name.
    let world = World::new();
    image.write_layout(&world.path("layout"), None);
    let mut stored = gzip(&tar);
    stored[9] ^= 1;
    fs::write(
        world
            .path("layout")
            .join(format!("blobs/sha256/{}", common::hex(&image.layers[0].1))),
        stored,
    )
    .unwrap();
    let error = world.resolve(world.path("layout").to_str().unwrap()).unwrap_err();
    assert!(
        error.report().contains("the layer is not what its digest promises"),
        "{}",
        error.report()
    );
}

#[test]
fn limits_stop_bombs() {
    let world = World::new();
    let bomb = TarBuilder::new().file("zeros", &vec![0; 8 << 20]).bytes();
    let many = (0..100)
        .fold(TarBuilder::new(), |tar, i| tar.file(format!("f{i}"), b""))
        .bytes();
    let deep = TarBuilder::new().file("a/".repeat(40) + "f", b"").bytes();
    for (layer, limits) in [
        (bomb, Limits::default().with_max_bytes(1 << 20)),
        (many, Limits::default().with_max_entries(50)),
        (deep, Limits::default().with_max_entries(30)),
    ] {
        let image = TestImage::gzipped(vec![layer]);
        image.write_layout(&world.path("layout"), None);
        let error = world
            .resolve_with(
                world.path("layout").to_str().unwrap(),
                &ResolveOptions::new().with_limits(limits),
            )
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.report());
        world.assert_clean();
    }
}

#[test]
fn zeros_take_no_room() {
    let world = World::new();
    let mut data = vec![0; 4 << 20];
    data[1 << 20] = 1;
    let root = layer(&world, TarBuilder::new().file("f", &data));
    assert_eq!(fs::read(root.join("f")).unwrap(), data);
    assert!(fs::metadata(root.join("f")).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn absolute_names_are_relative_and_links_stay_inside() {
    let world = World::new();
    let target = world.path("outside");
    fs::create_dir(&target).unwrap();
    let outside = target.to_str().unwrap();
    let root = layer(
        &world,
        TarBuilder::new()
            .file("/abs", b"1")
            .file("./dot/./f", b"2")
            .dir("usr/lib")
            .symlink("lib", "/usr/lib")
            .file("lib/inside", b"3")
            .symlink("up", "../../../../../../usr/lib")
            .file("up/also", b"4")
            .symlink("host", outside)
            .dir(outside)
            .file("host/f", b"5")
            .symlink("passwd", "/etc/passwd")
            .file("passwd", b"6"),
    );
    assert_eq!(fs::read(root.join("abs")).unwrap(), b"1");
    assert_eq!(fs::read(root.join("dot/f")).unwrap(), b"2");
    assert_eq!(fs::read(root.join("usr/lib/inside")).unwrap(), b"3");
    assert_eq!(fs::read(root.join("usr/lib/also")).unwrap(), b"4");
    assert_eq!(fs::read(root.join(&outside[1..]).join("f")).unwrap(), b"5");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    assert_eq!(fs::read_link(root.join("host")).unwrap(), target);
    assert!(root.join("passwd").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(root.join("passwd")).unwrap(), b"6");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let world = World::new();
    let root = layer(
        &world,
        TarBuilder::new()
            .file("a", b"old")
            .dir("a")
            .file("a/b", b"1")
            .dir("d/e/f")
            .file("d/e/f/g", b"")
            .file("d", b"now a file")
            .file("x", b"x")
            .file("x/y", b"2")
            .dir_mode("keep", 0o700)
            .file("keep/k", b"3")
            .dir_mode("keep", 0o711)
            .file("h1", b"h")
            .hard_link("h2", "h1")
            .hard_link("h1", "h2")
            .file("h3", b"other")
            .hard_link("h3", "./h1")
            .symlink("s", "a")
            .file("s", b"4"),
    );
    assert_eq!(fs::read(root.join("a/b")).unwrap(), b"1");
    assert_eq!(fs::read(root.join("d")).unwrap(), b"now a file");
    assert_eq!(fs::read(root.join("x/y")).unwrap(), b"2");
    assert_eq!(fs::read(root.join("keep/k")).unwrap(), b"3");
    assert_eq!(fs::metadata(root.join("keep")).unwrap().mode() & 0o077, 0o011);
    assert_eq!(fs::metadata(root.join("h1")).unwrap().nlink(), 3);
    assert_eq!(fs::read(root.join("h3")).unwrap(), b"h");
    assert_eq!(fs::read(root.join("s")).unwrap(), b"4");
}

#[test]
fn metadata_is_kept_but_set_user_id_bits_and_devices_are_not() {
    let world = World::new();
    let mut owned = TarBuilder::header(b'0', b"owned");
    owned.set_uid(1000);
    owned.set_gid(65534);
    owned.set_mode(0o4750);
    let tar = TarBuilder::new()
        .dir_mode("./", 0o755)
        .file_mode("suid", 0o4755, b"x")
        .file_mode("sgid", 0o2755, b"x")
        .file_mode("none", 0o000, b"x")
        .dir_mode("tmp", 0o1777)
        .dir_mode("closed", 0o000)
        .file("closed/f", b"x")
        .raw(owned, b"")
        .file(b"na\xefme\n", b"x")
        .special(b'3', "dev/null")
        .special(b'4', "dev/sda")
        .special(b'6', "fifo");
    let resolved = world.unpack(tar.bytes()).unwrap();
    let root = &resolved.layers[0];
    let mode = |name: &str| fs::symlink_metadata(root.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("suid"), mode("sgid"), mode("tmp")), (0o755, 0o755, 0o1777));
    let owned = fs::metadata(root.join("owned")).unwrap();
    if is_root() {
        assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777), (1000, 65534, 0o750));
        assert_eq!((mode("none"), mode("closed")), (0, 0));
    } else {
        assert_eq!(owned.uid(), rustix::process::geteuid().as_raw());
        assert_eq!((mode("none"), mode("closed")), (0o600, 0o700));
    }
    assert_eq!(fs::metadata(root.join("suid")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(root.join("closed")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(root).unwrap().mtime(), 1_000_000_000);
    assert!(root.join(std::ffi::OsStr::from_bytes(b"na\xefme\n")).exists());
    assert!(!root.join("dev/null").exists() && !root.join("fifo").exists());
    assert_eq!(resolved.warnings.len(), 3);
    assert!(
        resolved.warnings[0].contains("\"dev/null\" is a character device"),
        "{:?}",
        resolved.warnings
    );

    if is_root() {
        let mut high = TarBuilder::header(b'0', b"high");
        high.set_uid(65536);
        let error = world.unpack(TarBuilder::new().raw(high, b"").bytes()).unwrap_err();
        assert!(error.message().contains("65536:0"), "{error}");
    }
}

#[test]
fn attributes_of_files_are_dropped() {
    let world = World::new();
    let record = |key: &str, value: &[u8]| {
        let rest = key.len() + value.len() + 3;
        let length = rest + if rest + 2 > 99 { 3 } else { 2 };
        let mut out = format!("{length} {key}=").into_bytes();
        out.extend_from_slice(value);
        out.push(b'\n');
        out
    };
    let mut records = record(
        "SCHILY.xattr.security.capability",
        &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0],
    );
    records.extend(record("SCHILY.xattr.user.overlay.opaque", b"y"));
    let mut header = TarBuilder::header(b'x', b"pax");
    header.set_size(records.len() as u64);
    let root = layer(&world, TarBuilder::new().raw(header, &records).file("f", b"x"));
    let mut names = [0; 256];
    assert_eq!(rustix::fs::listxattr(root.join("f"), &mut names[..]).unwrap(), 0);
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let world = World::new();
    let root = layer(
        &world,
        TarBuilder::new()
            .file("d/.wh.gone", b"")
            .dir("o")
            .file("o/.wh..wh..opq", b"")
            .file("o/new", b"x")
            .file("implied/.wh..wh..opq", b"")
            // A whiteout hides lower layers only.
            .file("same", b"stays")
            .file(".wh.same", b"")
            .file(".wh.after", b"")
            .file("after", b"stays")
            .dir("folder")
            .file("folder/f", b"x")
            .file(".wh.folder", b"")
            .file(".wh.later", b"")
            .file("later/f", b"x")
            .file(".wh.again", b"")
            .file(".wh.again", b"")
            .file(".wh..wh.plnk/1.2", b"")
            .file(".wh..wh.aufs", b""),
    );
    assert!(whiteout(&root.join("d/gone")));
    assert!(opaque(&root.join("o")) && root.join("o/new").exists());
    assert!(opaque(&root.join("implied")));
    assert_eq!(fs::read(root.join("same")).unwrap(), b"stays");
    assert_eq!(fs::read(root.join("after")).unwrap(), b"stays");
    assert!(opaque(&root.join("folder")) && root.join("folder/f").exists());
    assert!(opaque(&root.join("later")) && root.join("later/f").exists());
    assert!(whiteout(&root.join("again")));
    let names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !names.iter().any(|name| name.as_bytes().starts_with(b".wh.")),
        "{names:?}"
    );
}

#[test]
fn an_opaque_root_hides_all_lower_layers() {
    let world = World::new();
    let image = TestImage::gzipped(vec![
        TarBuilder::new().file("lower", b"").bytes(),
        TarBuilder::new().file(".wh..wh..opq", b"").file("middle", b"").bytes(),
        TarBuilder::new().file("upper", b"").bytes(),
    ]);
    let file = world.write("image.tar", &image.docker_archive(&[]));
    for _ in 0..2 {
        let resolved = world.resolve(&file).unwrap();
        assert_eq!(resolved.layers.len(), 2);
        assert!(resolved.layers[0].join("middle").exists() && resolved.layers[1].join("upper").exists());
    }
}

/// Random damage, with checksums made right again, so that it reaches the code behind them.
#[test]
fn no_mutation_escapes_or_panics() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    let base = TarBuilder::new()
        .dir("d")
        .file("d/f", b"data")
        .symlink("l", outside.to_str().unwrap())
        .symlink("d/u", "../..")
        .hard_link("h", "d/f")
        .file("l/f", b"x")
        .file("d/u/g", b"x")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.w", b"")
        .file("w/x", b"y")
        .bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let interesting = b"\0/.0157LKxgS\xff\x80dlfuhw";
    for _ in 0..150 {
        let mut bytes = base.clone();
        for _ in 0..=random(4) {
            let block = random(bytes.len() / 512) * 512;
            // Mostly names, link names, types and sizes.
            let offset = [random(100), 157 + random(100), 156, 124 + random(12), random(512)][random(5)];
            bytes[block + offset] = interesting[random(interesting.len())];
            if bytes[block..block + 512].iter().any(|byte| *byte != 0) {
                let mut header = tar::Header::from_byte_slice(&bytes[block..block + 512]).clone();
                header.set_cksum();
                bytes[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        if let Err(error) = world.unpack(bytes) {
            assert!(
                matches!(error.kind(), ErrorKind::DataInvalid | ErrorKind::Unsupported),
                "{}",
                error.report()
            );
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let names: Vec<_> = fs::read_dir(world.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
    world.assert_clean();
}

/// As root, this suite runs again as an ordinary user: whiteouts and clean-up must work there, too.
#[test]
fn all_of_this_holds_for_an_ordinary_user() {
    if !is_root() || std::env::var_os("AGENTS_IMAGE_TEST_CHILD").is_some() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("layers");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let temp = folder.path().join("tmp");
    fs::create_dir(&temp).unwrap();
    fs::set_permissions(&temp, fs::Permissions::from_mode(0o777)).unwrap();
    let output = std::process::Command::new(&program)
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .env("TMPDIR", &temp)
        .env("HOME", &temp)
        .env("AGENTS_IMAGE_TEST_CHILD", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // Everything could be deleted by its owner.
    assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
}
