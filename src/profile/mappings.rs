//! What code lies where in the process: programs and libraries, as tools tell them apart.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A file, or what the kernel adds, where it can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: usize,
    /// Beyond the last byte.
    pub(super) end: usize,
    /// Of `start` in the file.
    pub(super) offset: u64,
    pub(super) file: String,
    /// What ties a file of symbols to its program, in hexadecimal; empty when there is none.
    pub(super) build_id: String,
}

/// All code of the process, by address, the program's own first as tools expect it.
pub(super) fn all() -> Vec<Mapping> {
    let mut mappings = parse(&fs::read_to_string("/proc/self/maps").unwrap_or_default());
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    mappings.sort_by_key(|mapping| Path::new(&mapping.file) != program);
    for mapping in &mut mappings {
        let is_program = Path::new(&mapping.file) == program;
        // The program is there under this name even when another one was installed in its place.
        let file = if is_program { "/proc/self/exe" } else { mapping.file.as_str() };
        mapping.build_id = build_id(Path::new(file)).unwrap_or_default();
    }
    mappings
}

/// Lines of proc_pid_maps(5): `start-end perms offset dev inode path`.
fn parse(maps: &str) -> Vec<Mapping> {
    let mapping = |line: &str| {
        let mut columns = line.splitn(6, ' ');
        let (start, end) = columns.next()?.split_once('-')?;
        let is_code = columns.next()?.contains('x');
        let offset = u64::from_str_radix(columns.next()?, 16).ok()?;
        let file = columns.nth(2).unwrap_or_default().trim_start();
        let address = |digits| usize::from_str_radix(digits, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        is_code.then(|| Mapping { start, end, offset, file: file.to_owned(), build_id: String::new() })
    };
    maps.lines().filter_map(mapping).collect()
}

/// Where the fields of an ELF file of 64 bits stand, least significant byte first: what our platforms use.
mod elf {
    pub(super) const MAGIC: &[u8] = b"\x7fELF\x02\x01";
    pub(super) const HEADER: usize = 64;
    pub(super) const PROGRAM_HEADERS_AT: usize = 32;
    pub(super) const PROGRAM_HEADERS: usize = 56;
    pub(super) const PROGRAM_HEADER: usize = 56;
    pub(super) const TYPE_NOTE: u32 = 4;
    pub(super) const NOTE_BUILD_ID: u32 = 3;
    /// No note of a program is as long.
    pub(super) const NOTES_MAX: u64 = 64 * 1024;
}

/// The build id that the linker wrote into a note.
fn build_id(file: &Path) -> Option<String> {
    let file = File::open(file).ok()?;
    let header = read(&file, 0, elf::HEADER).ok().filter(|header| header.starts_with(elf::MAGIC))?;
    let (at, count) = (number::<8>(&header, elf::PROGRAM_HEADERS_AT)?, number::<2>(&header, elf::PROGRAM_HEADERS)?);
    let headers = read(&file, at, usize::try_from(count).ok()? * elf::PROGRAM_HEADER).ok()?;
    let notes = headers.chunks_exact(elf::PROGRAM_HEADER).filter_map(|header| {
        let is_note = number::<4>(header, 0)? == u64::from(elf::TYPE_NOTE);
        let (at, length) = (number::<8>(header, 8)?, number::<8>(header, 32)?);
        (is_note && length <= elf::NOTES_MAX).then(|| read(&file, at, usize::try_from(length).ok()?).ok())?
    });
    notes.filter_map(|notes| build_id_among(&notes)).next()
}

/// Notes are `name length, description length, type, name, description`, the last two filled up to four bytes.
fn build_id_among(mut notes: &[u8]) -> Option<String> {
    loop {
        let length = |at| usize::try_from(number::<4>(notes, at)?).ok();
        let (name, description, kind) = (length(0)?, length(4)?, number::<4>(notes, 8)?);
        let rest = notes.get(12..)?;
        let at = name.next_multiple_of(4);
        let id = rest.get(at..at.checked_add(description)?)?;
        if kind == u64::from(elf::NOTE_BUILD_ID) && rest.starts_with(b"GNU\0") {
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = rest.get(at.checked_add(description.next_multiple_of(4))?..)?;
    }
}

fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// The number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut number = [0; 8];
    number[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_run_is_code_and_paths_may_have_spaces() {
        let maps = "\
55d0c0a00000-55d0c0a21000 r--p 00000000 fe:01 1234                       /usr/my server/scd
55d0c0a21000-55d0c0b00000 r-xp 00021000 fe:01 1234                       /usr/my server/scd (deleted)
7ffc0e5f0000-7ffc0e611000 rw-p 00000000 00:00 0                          [stack]
7ffc0e7d4000-7ffc0e7d6000 r-xp 00000000 00:00 0                          [vdso]
7ffc0e7d8000-7ffc0e7d9000 r-xp 00000000 00:00 0 \n\
half a line
";
        let mapping = |start, end, offset, file: &str| Mapping {
            start,
            end,
            offset,
            file: file.to_owned(),
            build_id: String::new(),
        };
        let expected = [
            mapping(0x55d0_c0a2_1000, 0x55d0_c0b0_0000, 0x21000, "/usr/my server/scd (deleted)"),
            mapping(0x7ffc_0e7d_4000, 0x7ffc_0e7d_6000, 0, "[vdso]"),
            mapping(0x7ffc_0e7d_8000, 0x7ffc_0e7d_9000, 0, ""),
        ];
        assert_eq!(parse(maps), expected);
    }

    #[test]
    fn the_program_comes_first_and_has_a_build_id() {
        let mappings = all();
        let own = only_what_can_be_run_is_code_and_paths_may_have_spaces as fn() as usize;
        assert!((mappings[0].start..mappings[0].end).contains(&own));
        assert!(mappings[0].build_id.len() >= 16, "{:?}", mappings[0]);
    }

    fn note(name: &[u8], kind: u8, description: &[u8]) -> Vec<u8> {
        let length = |part: &[u8]| u32::try_from(part.len()).unwrap();
        let lengths = [length(name), length(description), u32::from(kind)];
        let mut note: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
        for part in [name, description] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes_and_not_beyond_the_end() {
        let notes =
            [note(b"ABC\0", 3, b"12345"), note(b"GNU\0", 1, b"1"), note(b"GNU\0", 3, &[0xab, 1, 0xff])].concat();
        assert_eq!(build_id_among(&notes).as_deref(), Some("ab01ff"));
        for cut in 0..notes.len() - 1 {
            assert_eq!(build_id_among(&notes[..cut]), None, "{cut}");
        }
        assert_eq!(build_id_among(&[0xff; 40]), None);
    }

    #[test]
    fn what_is_no_program_has_no_build_id() {
        assert_eq!(build_id(Path::new("/proc/self/maps")), None);
        assert_eq!(build_id(Path::new("[vdso]")), None);
    }
}
