"""Generate a small re-identification set of drawn persons, laid out like Market-1501: for tests and a first run.

In: a seed. Out: images of 64x128. A person has a build and clothes of few colours, so that only the full outfit
identifies them; a camera has its own light, place and angle, so that colours and silhouettes change between cameras.
Poses, occlusions, clutter and bad detections make it harder. It says nothing about real images.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sidebranch.errors import UserError
from sidebranch.seeding import seed_of

Colour = tuple[int, int, int]
Point = tuple[float, float]
Keys = tuple[int, int, int]

WIDTH, HEIGHT = 64, 128
JUNK = -1
SCALE = 2  # images are drawn larger by this factor, then reduced
CAMERAS = 6
CLOTHES: tuple[Colour, ...] = (
    (32, 34, 40),
    (228, 228, 224),
    (128, 130, 134),
    (176, 40, 44),
    (40, 74, 150),
    (58, 124, 66),
    (222, 186, 66),
    (120, 74, 48),
    (130, 62, 132),
    (96, 160, 196),
)
TROUSERS: tuple[Colour, ...] = ((30, 32, 38), (52, 66, 104), (122, 124, 128), (160, 138, 104), (214, 212, 206))
SKIN: tuple[Colour, ...] = ((244, 208, 178), (214, 164, 124), (156, 106, 74), (94, 62, 46))
HAIR: tuple[Colour, ...] = ((24, 20, 18), (84, 54, 34), (184, 144, 84), (150, 150, 150), (124, 48, 30))


@dataclass(frozen=True)
class Look:
    """A person: the properties that are the same in all images."""

    height: float
    build: float
    skin: Colour
    hair: Colour
    long_hair: bool
    top: Colour
    trim: Colour
    pattern: str
    long_sleeves: bool
    bottom: Colour
    cut: str
    shoes: Colour
    bag: str
    bag_colour: Colour


@dataclass(frozen=True)
class Camera:
    """A camera: its position, light and background."""

    angle: float
    light: list[float]
    contrast: float
    tilt: float
    blur: float
    wall: Colour
    ground: Colour
    horizon: float


def write_synthetic_reid(
    root: Path, identities: int = 200, seed: int = 0, done: Callable[[int, int], object] = lambda at, of: None
) -> dict[str, int]:
    """Generates the set; half of the identities are for training.

    Args:
        root: a new folder.
        identities: number of persons.
        seed: the same seed gives the same files.
        done: called with the number of images written, and in total.

    Returns:
        Folder to number of images.

    Raises:
        UserError: the folder exists, or there are too few or too many persons.
    """
    if not 4 <= identities <= 9998:
        raise UserError(f"--identities is {identities}; it must be from 4 to 9998")
    folders = ("bounding_box_train", "query", "bounding_box_test")
    if any((root / each).exists() for each in folders):
        raise UserError(f"'{root}' holds a re-identification set already; give another folder")
    try:
        return _written(root, folders, identities, seed, done)
    except OSError as error:
        raise UserError(f"cannot write to '{root}' ({error.strerror})") from error


def _written(
    root: Path, folders: tuple[str, ...], identities: int, seed: int, done: Callable[[int, int], object]
) -> dict[str, int]:
    """Folder to number of images; the folder appears when all images are written."""
    files = {folder: _files(folder, identities, seed) for folder in folders}
    unfinished = root / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in folders:
        (unfinished / folder).mkdir(parents=True)
    jobs = [(unfinished / folder / _name(*keys), keys) for folder, found in files.items() for keys in found]
    with ThreadPoolExecutor() as writers:
        for at, _ in enumerate(writers.map(lambda job: _write(job[0], job[1], seed), jobs), 1):
            done(at, len(jobs))
    for folder in folders:
        (unfinished / folder).rename(root / folder)
    unfinished.rmdir()
    return {folder: len(found) for folder, found in files.items()}


def _files(folder: str, identities: int, seed: int) -> list[Keys]:
    """The images of a folder: identity, camera and number of each; distractors are 0, junk is -1."""
    found: list[Keys] = []
    half = identities // 2
    for person in range(1, half + 1) if folder == "bounding_box_train" else range(half + 1, identities + 1):
        draws = _draws(seed, "appearances", person)
        seen_by = draws.permutation(CAMERAS)[: draws.integers(3, CAMERAS)].tolist()
        for camera in sorted(seen_by):
            count = int(draws.integers(2, 5))
            numbers = {"query": range(1), "bounding_box_test": range(1, count)}.get(folder, range(count))
            found += [(person, camera + 1, number) for number in numbers]
    if folder == "bounding_box_test":
        draws = _draws(seed, "others")
        others = [(0, identities // 3), (JUNK, identities // 6)]
        found += [(who, int(draws.integers(1, CAMERAS + 1)), at) for who, count in others for at in range(count)]
    return found


def _name(person: int, camera: int, number: int) -> str:
    who = f"{person:04d}" if person >= 0 else str(person)
    return f"{who}_c{camera}s1_{number + 1:06d}_00.jpg"


def _write(path: Path, keys: Keys, seed: int) -> None:
    person, camera, number = keys
    draws = _draws(seed, "image", *keys)
    look = look_of(seed, person if person > 0 else 10_000 + number)  # every distractor is another person
    image = picture(look, camera_of(seed, camera), draws, is_junk=person == JUNK)
    image.save(path, quality=92)


def _draws(*keys: int | str) -> np.random.Generator:
    return np.random.default_rng(seed_of("synthetic re-ID", *keys))


def _colour(draws: np.random.Generator, least: int, most: int) -> Colour:
    red, green, blue = draws.integers(least, most, 3).tolist()
    return red, green, blue


def _greyish(draws: np.random.Generator) -> Colour:
    red, green, blue = (draws.integers(80, 180) + draws.normal(0, 16, 3)).astype(int).tolist()
    return red, green, blue


def look_of(seed: int, person: int) -> Look:
    """The person with this number."""
    draws = _draws(seed, "look", person)

    def one_of(choices: tuple[Colour, ...], spread: int = 10) -> Colour:
        near = np.array(choices[draws.integers(len(choices))]) + draws.normal(0, spread, 3)
        red, green, blue = near.clip(0, 255).astype(int).tolist()
        return red, green, blue

    return Look(
        height=draws.uniform(0.86, 1.0),
        build=draws.uniform(0.85, 1.25),
        skin=one_of(SKIN, 5),
        hair=one_of(HAIR, 5),
        long_hair=bool(draws.random() < 0.4),
        top=one_of(CLOTHES),
        trim=one_of(CLOTHES),
        pattern=str(draws.choice(["plain", "plain", "stripes", "bars", "halves", "badge"])),
        long_sleeves=bool(draws.random() < 0.5),
        bottom=one_of(TROUSERS),
        cut=str(draws.choice(["trousers", "trousers", "shorts", "skirt"])),
        shoes=one_of(CLOTHES),
        bag=str(draws.choice(["none", "none", "backpack", "shoulder"])),
        bag_colour=one_of(CLOTHES),
    )


def camera_of(seed: int, number: int) -> Camera:
    """The camera with this number."""
    draws = _draws(seed, "camera", number)
    brightness = draws.uniform(0.6, 1.15)
    return Camera(
        angle=(number - 1) * 2 * math.pi / CAMERAS + draws.uniform(-0.4, 0.4),
        light=(brightness * draws.uniform(0.82, 1.18, 3)).tolist(),
        contrast=draws.uniform(0.65, 1.1),
        tilt=draws.uniform(-0.07, 0.07),
        blur=draws.uniform(0.2, 1.1),
        wall=_greyish(draws),
        ground=_greyish(draws),
        horizon=draws.uniform(0.45, 0.75),
    )


def picture(look: Look, camera: Camera, draws: np.random.Generator, is_junk: bool = False) -> Image.Image:
    """An image of a person, 64x128; junk is a box that shows little of the person."""
    canvas = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), camera.wall)
    _draw_place(canvas, camera, draws)
    _draw_person(canvas, look, camera, draws, is_junk)
    if draws.random() < 0.3:
        _draw_obstacle(canvas, draws)
    canvas = canvas.filter(ImageFilter.GaussianBlur(camera.blur * SCALE * draws.uniform(0.6, 1.4)))
    small = canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    light = np.array(camera.light) * draws.uniform(0.85, 1.15)
    pixels = ((np.asarray(small) / 255 - 0.5) * camera.contrast + 0.5) * light
    pixels = pixels + draws.normal(0, 0.02, pixels.shape)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def _draw_place(canvas: Image.Image, camera: Camera, draws: np.random.Generator) -> None:
    """The background: wall, ground and a few objects."""
    pen, (width, height) = ImageDraw.Draw(canvas), canvas.size
    horizon = camera.horizon * height
    pen.rectangle((0, horizon, width, height), fill=camera.ground)
    for _ in range(int(draws.integers(1, 4))):
        left, breadth = draws.uniform(-0.2, 1) * width, draws.uniform(0.05, 0.5) * width
        top = draws.uniform(-0.1, 0.9) * horizon
        colour = _colour(draws, 30, 230)
        pen.rectangle((left, top, left + breadth, draws.uniform(0.95, 1.25) * horizon), fill=colour)


def _draw_obstacle(canvas: Image.Image, draws: np.random.Generator) -> None:
    """An occlusion: a pole, or a bin in front of the legs."""
    pen, (width, height) = ImageDraw.Draw(canvas), canvas.size
    colour = _colour(draws, 30, 200)
    left = draws.uniform(0.1, 0.8) * width
    if draws.random() < 0.5:
        pen.rectangle((left, 0, left + 0.09 * width, height), fill=colour)
    else:
        pen.rectangle((left - 0.1 * width, draws.uniform(0.6, 0.8) * height, left + 0.4 * width, height), fill=colour)


def _draw_person(canvas: Image.Image, look: Look, camera: Camera, draws: np.random.Generator, is_junk: bool) -> None:
    pen, (width, height) = ImageDraw.Draw(canvas), canvas.size
    tall = 0.86 * height * look.height * draws.uniform(0.94, 1.06)
    centre = width * (0.5 + draws.normal(0, 0.04))
    foot = height * (0.97 + draws.normal(0, 0.015))
    if is_junk:
        tall, centre = tall * draws.uniform(1.5, 2.5), width * draws.choice([-0.1, 0.1, 0.9, 1.1])
    angle = camera.angle + draws.normal(0, 0.35)
    facing, across = math.cos(angle), 0.62 + 0.38 * abs(math.cos(angle))  # a body is narrower from the side
    stride, swing = draws.normal(0, 0.09), draws.normal(0, 0.1)

    def at(right: float, up: float) -> Point:
        """A point of the body, in units of its height from between the feet."""
        return centre + tall * (right + camera.tilt * up), foot - tall * up

    def limb(start: Point, end: Point, thick: float, colour: Colour) -> None:
        pen.line((at(*start), at(*end)), fill=colour, width=max(1, round(tall * thick)))
        x, y = at(*end)
        radius = tall * thick / 2
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def block(points: list[Point], colour: Colour) -> None:
        pen.polygon([at(*point) for point in points], fill=colour)

    shoulder = 0.125 * look.build * across
    hip = 0.085 * look.build * (0.8 + 0.2 * across)
    back_bag = look.bag == "backpack" and facing > -0.3
    if back_bag:  # its straps and edges show from the front
        block([(-shoulder * 1.1, 0.8), (shoulder * 1.1, 0.8), (shoulder, 0.6), (-shoulder, 0.6)], look.bag_colour)
    for side in (-1, 1):  # legs
        step = side * stride + side * 0.02
        knee, heel = (side * hip * 0.55 + step * 0.5, 0.27), (side * hip * 0.6 + step, 0.03)
        covered = look.cut == "trousers"
        limb((side * hip * 0.5, 0.48), knee, 0.075 * look.build, look.bottom if look.cut != "skirt" else look.skin)
        limb(knee, heel, 0.055 * look.build, look.bottom if covered else look.skin)
        toe = 0.05 * math.sin(angle)
        limb((heel[0], 0.015), (heel[0] + toe, 0.012), 0.045, look.shoes)
    if look.cut == "skirt":
        block([(-hip, 0.52), (hip, 0.52), (hip * 1.5, 0.28), (-hip * 1.5, 0.28)], look.bottom)
    block([(-shoulder, 0.81), (shoulder, 0.81), (hip * 1.05, 0.47), (-hip * 1.05, 0.47)], look.top)
    _draw_pattern(block, look, shoulder, hip, facing)
    for side in (-1, 1):  # arms
        elbow = (side * (shoulder + 0.02) + side * swing * 0.4, 0.62)
        hand = (side * (shoulder + 0.015) + side * swing, 0.46)
        limb((side * shoulder, 0.79), elbow, 0.055 * look.build, look.top)
        limb(elbow, hand, 0.045 * look.build, look.top if look.long_sleeves else look.skin)
        limb(hand, hand, 0.04, look.skin)
    if look.bag == "backpack" and not back_bag:
        block(
            [(-shoulder * 0.85, 0.8), (shoulder * 0.85, 0.8), (shoulder * 0.8, 0.55), (-shoulder * 0.8, 0.55)],
            look.bag_colour,
        )
    if look.bag == "shoulder":
        side = 1 if facing > 0 else -1
        block(
            [(side * hip, 0.55), (side * (hip + 0.09), 0.55), (side * (hip + 0.09), 0.4), (side * hip, 0.4)],
            look.bag_colour,
        )
        limb((side * (hip + 0.03), 0.54), (-side * shoulder * 0.6, 0.81), 0.015, look.bag_colour)
    _draw_head(pen, at, tall, look, facing)


def _draw_pattern(
    block: Callable[[list[Point], Colour], None], look: Look, shoulder: float, hip: float, facing: float
) -> None:
    """The pattern on the top; a badge is only on its front."""
    if look.pattern == "stripes":
        for up in (0.53, 0.61, 0.69, 0.77):
            half = hip + (shoulder - hip) * (up - 0.47) / 0.34
            block([(-half, up), (half, up), (half, up - 0.035), (-half, up - 0.035)], look.trim)
    elif look.pattern == "bars":
        for right in (-0.6, 0.0, 0.6):
            middle = right * hip
            block(
                [(middle - 0.012, 0.8), (middle + 0.012, 0.8), (middle + 0.012, 0.48), (middle - 0.012, 0.48)],
                look.trim,
            )
    elif look.pattern == "halves":
        block([(-hip * 1.1, 0.62), (hip * 1.1, 0.62), (hip * 1.05, 0.47), (-hip * 1.05, 0.47)], look.trim)
    elif look.pattern == "badge" and facing > 0.2:
        block([(-0.04, 0.74), (0.04, 0.74), (0.04, 0.66), (-0.04, 0.66)], look.trim)


def _draw_head(
    pen: ImageDraw.ImageDraw, at: Callable[[float, float], Point], tall: float, look: Look, facing: float
) -> None:
    def disc(right: float, up: float, wide: float, high: float, colour: Colour) -> None:
        x, y = at(right, up)
        pen.ellipse((x - tall * wide, y - tall * high, x + tall * wide, y + tall * high), fill=colour)

    disc(0, 0.83, 0.03, 0.04, look.skin)
    if look.long_hair:
        disc(0, 0.88, 0.068, 0.1, look.hair)
    disc(0, 0.91, 0.056, 0.075, look.hair)
    if facing > -0.5:  # the face
        disc(0.02 * (1 - max(facing, 0)), 0.895, 0.035 + 0.012 * max(facing, 0), 0.055, look.skin)
