//! What an agent may leave in its output to harm who collects it: as scripts that run in a container, and as archives.

use std::fmt;

/// A shell script for `sh` that runs as the agent, and what must become of what it leaves in `/output`.
///
/// Every script leaves the file `ok.txt` with the content `fine`, which must be stored: one bad entry must not cost the good
/// ones. Whatever happens, nothing outside of the store and the output folder may be touched, and the run must end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostileOutput {
    /// A name for reports.
    pub name: &'static str,
    /// The script, which may assume that `/output` is empty and that it is the working directory.
    pub script: String,
    /// What must be stored with this content.
    pub stored: Vec<(Vec<u8>, Vec<u8>)>,
    /// What must be refused and named in the record. Names are relative to `/output`.
    pub refused: Vec<Vec<u8>>,
    /// What may be stored or refused, but if stored, then with a content that begins like this.
    pub either: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether there may be more, so many that the record may count instead of name them.
    pub many: bool,
    /// Whether a process goes on writing after the main process has ended, unless it is killed.
    pub lingers: bool,
}

impl HostileOutput {
    fn new(name: &'static str, script: impl fmt::Display) -> Self {
        Self {
            name,
            script: format!("cd /output\nprintf fine > ok.txt\n{script}\nexit 0\n"),
            stored: vec![(b"ok.txt".to_vec(), b"fine".to_vec())],
            refused: Vec::new(),
            either: Vec::new(),
            many: false,
            lingers: false,
        }
    }

    fn stores(mut self, name: impl Into<Vec<u8>>, content: impl Into<Vec<u8>>) -> Self {
        self.stored.push((name.into(), content.into()));
        self
    }

    fn refuses(mut self, name: impl Into<Vec<u8>>) -> Self {
        self.refused.push(name.into());
        self
    }

    fn allows(mut self, name: impl Into<Vec<u8>>, content: impl Into<Vec<u8>>) -> Self {
        self.either.push((name.into(), content.into()));
        self
    }
}

/// The scripts.
pub fn hostile_outputs() -> Vec<HostileOutput> {
    let deep = vec!["d"; 600].join("/");
    let shallow = vec!["s"; 100].join("/");
    vec![
        HostileOutput::new("symlinks", "ln -s /etc/passwd passwd; ln -s ../../../../etc/passwd up; ln -s . self; ln -s none dangling; ln -s loop loop; mkdir d; ln -s / d/root")
            .refuses("passwd")
            .refuses("up")
            .refuses("self")
            .refuses("dangling")
            .refuses("loop")
            .refuses("d/root"),
        HostileOutput::new("symlink to a good file", "ln -s ok.txt alias")
            .refuses("alias"),
        // A hard link of two files in the output is two names of one content, and one of a file elsewhere fails or is a file.
        HostileOutput::new("hard links", "ln ok.txt twin; ln /etc/passwd passwd 2>/dev/null || printf none > passwd")
            .allows("twin", "fine")
            .allows("passwd", ""),
        HostileOutput::new("FIFO", "mkfifo fifo").refuses("fifo"),
        HostileOutput::new(
            "names with control characters",
            r#"printf x > "$(printf 'new\nline')"; printf x > "$(printf 'esc\033[2Jape')"; printf x > "$(printf 'tab\t')"; printf x > "$(printf 'del\177')""#,
        )
        .refuses("new\nline")
        .refuses("esc\u{1b}[2Jape")
        .refuses("tab\t")
        .refuses("del\u{7f}"),
        HostileOutput::new("names that are not UTF-8", r#"printf x > "$(printf 'bad\377\376')"; mkdir "$(printf 'd\300')"; printf x > "$(printf 'd\300')/in""#)
            .refuses(b"bad\xff\xfe")
            .refuses(b"d\xc0/in"),
        HostileOutput::new(
            "names that look like something else",
            r#"printf a > '-rf'; printf b > ' '; printf c > '...'; printf d > '~'; printf e > '%2e%2e'; printf f > '$(id)'; printf g > 'a;b'; printf h > .artifact.json; printf i > 'back\slash'"#,
        )
        .stores("-rf", "a")
        .stores(" ", "b")
        .stores("...", "c")
        .stores("~", "d")
        .stores("%2e%2e", "e")
        .stores("$(id)", "f")
        .stores("a;b", "g")
        .stores(".artifact.json", "h")
        .refuses("back\\slash"),
        HostileOutput::new("names that differ in case", "printf a > Name; printf b > name; printf c > NAME")
            .stores("Name", "a")
            .stores("name", "b")
            .stores("NAME", "c"),
        HostileOutput::new(
            "deep nesting",
            "i=0; while [ $i -lt 100 ]; do mkdir s; cd s; i=$((i+1)); done; printf deep > f\n\
             cd /output; i=0; while [ $i -lt 600 ]; do mkdir d && cd d || break; i=$((i+1)); done; printf deep > f",
        )
        .stores(format!("{shallow}/f"), "deep")
        .refuses(format!("{deep}/f")),
        HostileOutput {
            many: true,
            ..HostileOutput::new(
                "100,000 entries",
                "mkdir many; cd many; i=0; while [ $i -lt 1000 ]; do mkdir $i; cd $i; \
                 for a in 0 1 2 3 4 5 6 7 8 9; do for b in 0 1 2 3 4 5 6 7 8 9; do : > $a$b; done; done; cd ..; i=$((i+1)); done",
            )
        },
        // What the file system of the output cannot hold is made as large as it can.
        HostileOutput::new(
            "sparse file of 1 TiB",
            "for size in 1T 100G 10G; do truncate -s $size sparse 2>/dev/null && break; dd if=/dev/zero of=sparse bs=1 count=0 seek=$size 2>/dev/null && break; done",
        )
        .refuses("sparse"),
        HostileOutput {
            lingers: true,
            ..HostileOutput::new(
                "growing file",
                "trap '' TERM HUP INT; ( while :; do dd if=/dev/zero bs=65536 count=1 2>/dev/null >> growing; sleep 0.01; done ) > /dev/null 2>&1 < /dev/null &\n\
                 while [ ! -s growing ]; do sleep 0.01; done",
            )
            .allows("growing", "")
        },
        HostileOutput {
            lingers: true,
            ..HostileOutput::new(
                "parent swapped for a symlink",
                "mkdir d; printf mine > d/passwd; printf mine > d/hostname\n\
                 ( while :; do mv d e; ln -s /etc d; rm d; mv e d; done ) > /dev/null 2>&1 < /dev/null &\n\
                 sleep 0.2",
            )
            .allows("d/passwd", "mine")
            .allows("d/hostname", "mine")
            .allows("e/passwd", "mine")
            .allows("e/hostname", "mine")
            .allows("d", "")
        },
        HostileOutput::new("setuid", "printf '#!/bin/sh\\n' > run; chmod 6755 run; mkdir d; chmod 3777 d; printf x > d/f")
            .stores("run", "#!/bin/sh\n")
            .stores("d/f", "x"),
        HostileOutput::new("unreadable", "printf x > closed; chmod 000 closed; mkdir shut; printf x > shut/f; chmod 000 shut")
            .allows("closed", "x")
            .allows("shut/f", "x")
            .allows("shut", ""),
        HostileOutput::new("a name of 255 bytes", "n=$(printf 'x%.0s' $(seq 255)); printf long > $n")
            .stores("x".repeat(255), "long"),
    ]
}

/// An archive as a broken or hostile runtime could hand it over for `/output`, and what must become of its entries.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostileArchive {
    /// A name for reports.
    pub name: &'static str,
    /// The archive.
    pub bytes: Vec<u8>,
    /// What must be stored with this content, by names relative to `/output`.
    pub stored: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many further entries there are, of which each must be refused and put on record, or, with
    /// [`broken`](Self::broken), may be cut off.
    pub refused: usize,
    /// Whether the archive is broken, so that the extraction as a whole must fail, after whatever came before was kept or
    /// not.
    pub broken: bool,
}

/// The archives. In each, `output/ok.txt` with the content `fine` comes first.
pub fn hostile_archives() -> Vec<HostileArchive> {
    let begin = || {
        RawArchive::new()
            .folder("output/", 0o755)
            .file("output/ok.txt", b"fine")
    };
    let refuses = |name, refused, archive: RawArchive| HostileArchive {
        name,
        bytes: archive.finish(),
        stored: vec![(b"ok.txt".to_vec(), b"fine".to_vec())],
        refused,
        broken: false,
    };
    let stores = |name, entry: &[u8], content: &[u8], refused, archive: RawArchive| {
        let mut case = refuses(name, refused, archive);
        case.stored.push((entry.to_vec(), content.to_vec()));
        case
    };
    let broken = |name, bytes: Vec<u8>| HostileArchive {
        broken: true,
        bytes,
        ..refuses(name, 0, begin())
    };
    let whole = begin().file("output/big", &[7; 4096]).finish();
    vec![
        refuses("absolute name", 1, begin().file("/etc/evil", b"evil")),
        refuses("parent of the root", 1, begin().file("../evil", b"evil")),
        refuses("parent inside", 1, begin().file("output/../../evil", b"evil")),
        refuses(
            "parent that comes back",
            1,
            begin().file("output/d/../../output/evil", b"evil"),
        ),
        refuses("another root", 1, begin().file("elsewhere/evil", b"evil")),
        refuses("root with a longer name", 1, begin().file("output2/evil", b"evil")),
        refuses("file in place of the root", 1, begin().file("output", b"evil")),
        refuses("empty name", 1, begin().file("", b"evil")),
        refuses("backslashes", 1, begin().file("output\\..\\evil", b"evil")),
        refuses("symlink", 1, begin().link("output/link", "/etc/passwd")),
        refuses(
            "file through a symlink",
            2,
            begin().link("output/link", "/tmp").file("output/link/evil", b"evil"),
        ),
        refuses(
            "symlink in place of a folder",
            2,
            begin()
                .folder("output/d/", 0o755)
                .link("output/d", "/tmp")
                .file("output/d/evil", b"evil"),
        ),
        refuses("symlink in place of the root", 1, begin().link("output", "/tmp")),
        refuses(
            "hard link to the host",
            1,
            begin().hard_link("output/link", "/etc/passwd"),
        ),
        refuses(
            "hard link to a parent",
            1,
            begin().hard_link("output/link", "../../etc/passwd"),
        ),
        refuses(
            "hard link to nothing",
            1,
            begin().hard_link("output/link", "output/none"),
        ),
        refuses("character device", 1, begin().special("output/null", b'3')),
        refuses("block device", 1, begin().special("output/disk", b'4')),
        refuses("FIFO", 1, begin().special("output/fifo", b'6')),
        refuses("unknown type", 1, begin().special("output/unknown", b'Z')),
        stores(
            "setuid",
            b"run",
            b"#!",
            0,
            begin().file_with_mode("output/run", b"#!", 0o6755),
        ),
        refuses("duplicate of a file", 1, begin().file("output/ok.txt", b"evil")),
        refuses(
            "duplicate by another spelling",
            1,
            begin().file("output/./ok.txt", b"evil"),
        ),
        refuses(
            "folder in place of a file",
            2,
            begin()
                .folder("output/ok.txt/", 0o755)
                .file("output/ok.txt/evil", b"evil"),
        ),
        refuses("newline", 1, begin().file("output/new\nline", b"x")),
        refuses("control characters", 1, begin().file("output/\u{1b}[2J", b"x")),
        refuses("not UTF-8", 1, begin().file_bytes(b"output/\xff\xfe", b"x", 0o644)),
        refuses(
            "component of 256 bytes",
            1,
            begin().file(&format!("output/{}", "x".repeat(256)), b"x"),
        ),
        refuses(
            "name of 2,000 bytes",
            1,
            begin().file(&format!("output/{}", vec!["x"; 1000].join("/")), b"x"),
        ),
        stores(
            "long name that is fine",
            vec!["x"; 400].join("/").as_bytes(),
            b"long",
            0,
            begin().file(&format!("output/{}", vec!["x"; 400].join("/")), b"long"),
        ),
        refuses(
            "pax header that changes the name",
            1,
            begin().pax(&[("path", "../../evil")]).file("output/harmless", b"evil"),
        ),
        refuses(
            "pax header that changes the link's target",
            1,
            begin()
                .pax(&[("linkpath", "/etc/passwd")])
                .link("output/link", "ok.txt"),
        ),
        stores(
            "global pax header",
            b"a",
            b"x",
            0,
            begin().global_pax(&[("comment", "x")]).file("output/a", b"x"),
        ),
        broken(
            "pax header with a size of its own",
            begin().pax(&[("size", "99999999999")]).file("output/a", b"x").finish(),
        ),
        broken("huge pax header", begin().oversized(b'x').finish()),
        broken("huge long name", begin().oversized(b'L').finish()),
        broken(
            "declared size of 8 EiB",
            begin().declared("output/huge", u64::MAX >> 1).finish(),
        ),
        broken(
            "declared size of 1 TiB without content",
            begin().declared("output/huge", 1 << 40).finish(),
        ),
        broken("cut in a content", whole[..whole.len() - 1024 - 2000].to_vec()),
        broken("cut in a header", whole[..1024 + 512 + 100].to_vec()),
        broken("wrong checksum", {
            let mut bytes = whole.clone();
            // The name in the third header, whose two predecessors take 512 and 1024 bytes.
            bytes[1536] ^= 1;
            bytes
        }),
        broken(
            "noise",
            (0..4096_u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect(),
        ),
    ]
}

/// Builds archives in the ustar format that no decent tool would make. Names longer than 100 bytes go into GNU entries.
#[derive(Clone, Debug, Default)]
pub struct RawArchive(Vec<u8>);

impl RawArchive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with mode 0644.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.file_with_mode(name, content, 0o644)
    }

    /// A file.
    #[must_use]
    pub fn file_with_mode(self, name: &str, content: &[u8], mode: u32) -> Self {
        self.file_bytes(name.as_bytes(), content, mode)
    }

    /// A file whose name may be any bytes.
    #[must_use]
    pub fn file_bytes(self, name: &[u8], content: &[u8], mode: u32) -> Self {
        self.entry(name, b'0', mode, content.len() as u64, b"").content(content)
    }

    /// A folder.
    #[must_use]
    pub fn folder(self, name: &str, mode: u32) -> Self {
        self.entry(name.as_bytes(), b'5', mode, 0, b"")
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), b'2', 0o777, 0, target.as_bytes())
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), b'1', 0o644, 0, target.as_bytes())
    }

    /// An entry of another type, without content: `3` is a character device, `4` a block device, `6` a FIFO.
    #[must_use]
    pub fn special(self, name: &str, kind: u8) -> Self {
        self.entry(name.as_bytes(), kind, 0o666, 0, b"")
    }

    /// A file whose content is missing.
    #[must_use]
    pub fn declared(self, name: &str, size: u64) -> Self {
        self.entry(name.as_bytes(), b'0', 0o644, size, b"")
    }

    /// A pax header for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        self.pax_header(b'x', records)
    }

    /// A pax header for all that follows.
    #[must_use]
    pub fn global_pax(self, records: &[(&str, &str)]) -> Self {
        self.pax_header(b'g', records)
    }

    /// An extension header that declares 1 TiB.
    fn oversized(self, kind: u8) -> Self {
        self.header(b"././@LongLink", kind, 0o644, 1 << 40, b"")
            .content(&[b'x'; 4096])
    }

    /// The archive with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    fn pax_header(self, kind: u8, records: &[(&str, &str)]) -> Self {
        let mut content = String::new();
        for (key, value) in records {
            // A record begins with its own length, digits included.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.push_str(&format!("{length} {key}={value}\n"));
        }
        self.header(b"pax", kind, 0o644, content.len() as u64, b"")
            .content(content.as_bytes())
    }

    fn entry(mut self, name: &[u8], kind: u8, mode: u32, size: u64, target: &[u8]) -> Self {
        for (long, text) in [(b'L', name), (b'K', target)] {
            if text.len() > 100 {
                let terminated = [text, b"\0"].concat();
                self = self
                    .header(b"././@LongLink", long, 0o644, terminated.len() as u64, b"")
                    .content(&terminated);
            }
        }
        self.header(name, kind, mode, size, target)
    }

    fn header(mut self, name: &[u8], kind: u8, mode: u32, size: u64, target: &[u8]) -> Self {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        if size < 1 << 33 {
            put(124, format!("{size:011o}").as_bytes());
        } else {
            // GNU's base-256 form.
            put(124, &[0x80, 0, 0, 0]);
            put(128, &size.to_be_bytes());
        }
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &target[..target.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self
    }

    fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        let padded = self.0.len().next_multiple_of(512);
        self.0.resize(padded, 0);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = hostile_archives().iter().map(|case| case.name).collect();
        names.extend(hostile_outputs().iter().map(|case| case.name));
        names.retain(|name| *name != "FIFO" && *name != "setuid");
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    /// Hostile as they are, all but the broken ones must be archives: a case that fails to parse would prove nothing.
    #[test]
    fn archives_that_are_not_broken_can_be_read_and_hold_what_they_say() {
        for case in hostile_archives() {
            let mut contents = Vec::new();
            let mut count = 0;
            let mut read = || -> std::io::Result<()> {
                for entry in tar::Archive::new(&*case.bytes).entries()? {
                    let mut entry = entry?;
                    count += usize::from(!entry.header().entry_type().is_pax_global_extensions());
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    let name = entry.path_bytes().into_owned();
                    contents.push((name, content));
                }
                Ok(())
            };
            let result = read();
            if case.broken {
                continue;
            }
            assert!(result.is_ok(), "{}: {result:?}", case.name);
            for (name, content) in &case.stored {
                let name = [b"output/", name.as_slice()].concat();
                assert!(contents.contains(&(name, content.clone())), "{}", case.name);
            }
            let folders = if matches!(case.name, "symlink in place of a folder") {
                2
            } else {
                1
            };
            assert_eq!(count, case.stored.len() + case.refused + folders, "{}", case.name);
        }
    }
}
