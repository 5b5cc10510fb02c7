//! What clients send for a password (WIRE.md 9.1): Argon2id with the nickname as its salt.
//!
//! Written out here, after RFC 9106, because nicknames are shorter than the salts that libraries take. Operators need it
//! to give an account a new password; the server itself never sees one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Blake2b512, Digest as _};

/// As every client has them: 3 passes over 64 MiB in 4 lanes, 32 bytes out.
const PASSES: usize = 3;
const MEMORY_KIB: usize = 64 * 1024;
const LANES: usize = 4;
const HASH_BYTES: usize = 32;

const VERSION: u32 = 0x13;
/// The number of Argon2id among its kin.
const KIND: u32 = 2;

/// 64-bit words of a block.
const WORDS: usize = 128;
/// A pass goes over the memory in so many steps, between which lanes may look at each other.
const SLICES: usize = 4;
const LANE: usize = MEMORY_KIB / LANES;
const SEGMENT: usize = LANE / SLICES;

type Block = [u64; WORDS];

/// What a client with this nickname sends for this password; `None` when either is longer than any client takes.
#[must_use]
pub fn client_hash(password: &[u8], nickname: &[u8]) -> Option<String> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).ok();
    let seed = first_hash(password, length(password)?, nickname, length(nickname)?);
    let mut memory = vec![[0; WORDS]; MEMORY_KIB];
    for lane in 0..LANES {
        for column in 0..2 {
            memory[lane * LANE + column] = long_hash(&[&seed, &little(column), &little(lane)]);
        }
    }
    for pass in 0..PASSES {
        for slice in 0..SLICES {
            (0..LANES).for_each(|lane| fill_segment(&mut memory, Position { pass, slice, lane }));
        }
    }
    let mut last = memory[LANE - 1];
    for lane in 1..LANES {
        xor(&mut last, &memory[lane * LANE + LANE - 1]);
    }
    let bytes: Vec<u8> = last.iter().flat_map(|word| word.to_le_bytes()).collect();
    let hash = Blake2b::<U32>::new().chain_update(little(HASH_BYTES)).chain_update(bytes).finalize();
    Some(URL_SAFE_NO_PAD.encode(hash))
}

/// A password that nobody could guess; `None` when the system gives no random numbers.
#[must_use]
pub fn made_up_password() -> Option<String> {
    use std::io::Read as _;
    let mut bytes = [0; 15];
    std::fs::File::open("/dev/urandom").ok()?.read_exact(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// Numbers here are far below 2^32.
fn little(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

fn first_hash(password: &[u8], password_bytes: u32, salt: &[u8], salt_bytes: u32) -> [u8; 64] {
    let mut hash = Blake2b512::new();
    for number in [LANES, HASH_BYTES, MEMORY_KIB, PASSES] {
        hash.update(little(number));
    }
    hash.update(VERSION.to_le_bytes());
    hash.update(KIND.to_le_bytes());
    hash.update(password_bytes.to_le_bytes());
    hash.update(password);
    hash.update(salt_bytes.to_le_bytes());
    hash.update(salt);
    // Neither a secret nor associated data.
    hash.update([0; 8]);
    hash.finalize().into()
}

/// H' of the RFC, for the length of a block.
fn long_hash(parts: &[&[u8]]) -> Block {
    let mut first = Blake2b512::new();
    first.update(little(WORDS * 8));
    parts.iter().for_each(|part| first.update(part));
    let mut hash: [u8; 64] = first.finalize().into();
    let mut bytes = Vec::with_capacity(WORDS * 8);
    while bytes.len() < WORDS * 8 - 64 {
        bytes.extend_from_slice(&hash[..32]);
        hash = Blake2b512::digest(hash).into();
    }
    bytes.extend_from_slice(&hash);
    let mut block = [0; WORDS];
    for (word, bytes) in block.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    }
    block
}

#[derive(Clone, Copy)]
struct Position {
    pass: usize,
    slice: usize,
    lane: usize,
}

impl Position {
    /// In the first half of the first pass, what is looked at does not depend on the password.
    fn is_independent(self) -> bool {
        self.pass == 0 && self.slice < SLICES / 2
    }
}

fn fill_segment(memory: &mut [Block], at: Position) {
    let Position { pass, slice, lane } = at;
    let start = if pass == 0 && slice == 0 { 2 } else { 0 };
    let mut addresses = [0; WORDS];
    for index in start..SEGMENT {
        let column = slice * SEGMENT + index;
        let before = lane * LANE + (column + LANE - 1) % LANE;
        if at.is_independent() && (index % WORDS == 0 || index == start) {
            addresses = some_addresses(at, index / WORDS + 1);
        }
        let random = if at.is_independent() { addresses[index % WORDS] } else { memory[before][0] };
        let reference = reference(at, index, random);
        let mut block = mix(&memory[before], &memory[reference]);
        let place = &mut memory[lane * LANE + column];
        if pass > 0 {
            xor(&mut block, place);
        }
        *place = block;
    }
}

fn some_addresses(Position { pass, slice, lane }: Position, counter: usize) -> Block {
    let mut input = [0; WORDS];
    let numbers = [pass, lane, slice, MEMORY_KIB, PASSES, KIND as usize, counter];
    for (word, number) in input.iter_mut().zip(numbers) {
        *word = number as u64;
    }
    let zero = [0; WORDS];
    mix(&zero, &mix(&zero, &input))
}

/// Which block is looked at, of those that are finished.
fn reference(Position { pass, slice, lane }: Position, index: usize, random: u64) -> usize {
    let (low, high) = (random & 0xffff_ffff, random >> 32);
    let other = if pass == 0 && slice == 0 { lane } else { place(high % LANES as u64) };
    let finished = if pass == 0 { slice * SEGMENT } else { LANE - SEGMENT };
    let area = if other == lane { finished + index - 1 } else { finished - usize::from(index == 0) };
    let far = place((area as u64 * ((low * low) >> 32)) >> 32);
    let first = if pass == 0 { 0 } else { (slice + 1) * SEGMENT };
    other * LANE + (first + area - 1 - far) % LANE
}

/// Far below what a machine of any size can address.
fn place(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn xor(block: &mut Block, with: &Block) {
    block.iter_mut().zip(with).for_each(|(word, other)| *word ^= other);
}

/// G of the RFC: sixteen words at a time, first along the rows, then along the columns.
fn mix(one: &Block, other: &Block) -> Block {
    let mut sum = *one;
    xor(&mut sum, other);
    let mut block = sum;
    for row in 0..8 {
        permute(&mut block, |word| row * 16 + word);
    }
    for column in 0..8 {
        permute(&mut block, |word| word / 2 * 16 + column * 2 + word % 2);
    }
    xor(&mut block, &sum);
    block
}

/// A round of BLAKE2b with its additions made heavier.
fn permute(block: &mut Block, place: impl Fn(usize) -> usize) {
    const QUARTERS: [[usize; 4]; 8] = [
        [0, 4, 8, 12],
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
        [0, 5, 10, 15],
        [1, 6, 11, 12],
        [2, 7, 8, 13],
        [3, 4, 9, 14],
    ];
    for quarter in QUARTERS {
        let [a, b, c, d] = quarter.map(&place);
        for (first, second) in [(32, 24), (16, 63)] {
            block[a] = heavy_sum(block[a], block[b]);
            block[d] = (block[d] ^ block[a]).rotate_right(first);
            block[c] = heavy_sum(block[c], block[d]);
            block[b] = (block[b] ^ block[c]).rotate_right(second);
        }
    }
}

fn heavy_sum(one: u64, other: u64) -> u64 {
    let low = |word: u64| word & 0xffff_ffff;
    one.wrapping_add(other).wrapping_add(low(one).wrapping_mul(low(other)).wrapping_mul(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a library takes the salt, ours comes to the same.
    #[test]
    fn a_library_computes_the_same_where_it_can() {
        let params = argon2::Params::new(64 * 1024, 3, 4, Some(32)).unwrap();
        let library = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        for (password, nickname) in [("correct horse battery staple", "longenough"), ("", "ann-the-second")] {
            let mut hash = [0; 32];
            library.hash_password_into(password.as_bytes(), nickname.as_bytes(), &mut hash).unwrap();
            let expected = URL_SAFE_NO_PAD.encode(hash);
            assert_eq!(client_hash(password.as_bytes(), nickname.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn short_nicknames_are_salts_too() {
        let [ann, bob] = [b"ann", b"bob"].map(|nickname| client_hash(b"secret", nickname).unwrap());
        assert_eq!(ann.len(), 43);
        assert_ne!(ann, bob);
    }

    #[test]
    fn made_up_passwords_differ() {
        let [one, other] = [(); 2].map(|()| made_up_password().unwrap());
        assert!(one.len() == 20 && one != other);
    }
}
