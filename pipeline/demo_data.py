"""The demo's shop: interactions with planted concepts.

Every item belongs to one category, and its title says which. Every user intends one to three categories and takes items
from them by popularity; a few interactions are noise. A model that separates concepts should therefore find the
categories, though it never reads them. One NumPy generator draws everything: the same seed gives the same bytes.

Shape letters: U users, N interactions, I items, G categories.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.publish import publish_file

KNOWN_USERS = 3_000
NEW_USERS = 198  # scored tonight, absent from the interactions
COLD_USER = "user-03198"  # scored tonight with an empty history
UNKNOWN_USER = "user-03199"  # scored tonight with items that are not in the catalogue
NOISE = 0.05  # share of interactions with an item of any category
FIRST_SECOND, LAST_SECOND = 1_735_689_600, 1_743_465_600  # the first quarter of 2025, UTC

# A title is a kind and a thing, and every kind suits every thing of its category.
CATEGORIES = {
    "Garden": (
        "Cottage,Patio,Orchard,Meadow,Allotment,Balcony,Heritage,Sturdy,Slimline,Large,Small,Green,All-season,"
        "Rustic,Terrace,Classic",
        "watering can,plant pot,pruning shears,trowel,hedge trimmer,seed tray,rake,garden hose,compost bin,trellis,"
        "bird feeder,wheelbarrow,planter box,garden fork,greenhouse,sprinkler",
    ),
    "Kitchen": (
        "Bistro,Farmhouse,Nordic,Large,Small,Heavy-duty,Professional,Everyday,Family,Modern,Rustic,Provence,"
        "Signature,Compact,Steel,Classic",
        "frying pan,saucepan,chef's knife,cutting board,mixing bowl,kettle,colander,baking tray,pepper mill,"
        "salad bowl,measuring cups,Dutch oven,whisk,grater,espresso pot,roasting tin",
    ),
    "Music": (
        "Vintage,Studio,Concert,Student,Portable,Touring,Stage,Session,Beginner's,Signature,Jazz,Folk,Blues,"
        "Rehearsal,Premium,Classic",
        "guitar,bass,ukulele,keyboard,drum kit,violin,cello,mandolin,banjo,trumpet,amplifier,microphone,clarinet,"
        "accordion,saxophone,audio interface",
    ),
    "Office": (
        "Minimalist,Executive,Compact,Modern,Slim,Studio,Everyday,Premium,Graphite,Home-office,Recycled,Nordic,"
        "Sand,Professional,Black,Classic",
        "desk chair,standing desk,notebook,fountain pen,desk lamp,monitor arm,keyboard tray,filing cabinet,"
        "whiteboard,stapler,paper tray,mouse pad,footrest,bookend,desk organiser,label maker",
    ),
    "Outdoor": (
        "Trail,Alpine,Ultralight,Compact,Expedition,Summit,Forest,Coastal,Winter,Rugged,Weekend,Ridge,Glacier,"
        "Basecamp,Nordic,Classic",
        "running shoes,tent,sleeping bag,backpack,rain jacket,hiking boots,headlamp,camp stove,water bottle,"
        "trekking poles,dry bag,fleece,climbing rope,hammock,compass,gaiters",
    ),
    "Pets": (
        "Cosy,Travel,Senior,Indoor,Washable,Sturdy,Quiet,Small,Large,Everyday,Deluxe,Soft-touch,Easy-clean,Country,"
        "City,Classic",
        "dog bed,cat tree,collar,leash,food bowl,scratching post,pet carrier,chew toy,litter box,harness,"
        "grooming brush,water fountain,pet blanket,treat pouch,puzzle feeder,cat flap",
    ),
    "Toys": (
        "Giant,Mini,Rainbow,Space,Jungle,Pirate,Dinosaur,Farmyard,Deluxe,Travel,Fairy-tale,Ocean,Safari,Circus,"
        "Starlight,Classic",
        "building blocks,puzzle,train set,dollhouse,kite,board game,marble run,spinning top,play kitchen,toy boat,"
        "robot,yo-yo,card game,stacking rings,toy drum,plush bear",
    ),
}

CONFIG = f"""\
# What the demo trains. Every field and its default: configs/default.toml.

[data]
input = "interactions.parquet"
items = "items.parquet"
# No epoch is chosen by validation: concepts go on separating after ranking has stopped to improve.
validation = 0
test = 300

[model]
n_concepts = {len(CATEGORIES)}
embedding_size = 32
encoder_hidden_sizes = [64]
temperature = 0.33
prior_std = 0.3
history_norm = "history"

[training]
initialisation = "spectral"
epochs = 30
train_batch_size = 100
learning_rate = 1e-3
averaged_epochs = 0.0
"""


def write_demo(folder: Path, seed: int = 7) -> None:
    """Write a workspace for the three commands: what happened, what is sold, whom to score tonight, and the config.

    - `interactions.parquet`: `user_id`, `item_id` (strings), `timestamp` (Unix seconds); oldest first, no pair twice
    - `items.parquet`: `item_id`, `title`, `category`
    - `users.parquet`: `user_id`, `history` (list of item ids): everybody above, new users, `COLD_USER`, `UNKNOWN_USER`
    - `pipeline.toml`

    Files of these names are replaced. `folder` is made when missing.
    """
    rng = np.random.default_rng(seed)
    items, popularity_I = _draw_items(rng)
    log = _draw_interactions(rng, items, popularity_I)
    histories = log.group_by("user_id", maintain_order=True).agg(history="item_id").sort("user_id")
    odd_users = pl.DataFrame({"user_id": [COLD_USER, UNKNOWN_USER], "history": [[], ["item-99998", "item-99999"]]})
    tables = {
        "interactions.parquet": log.filter(pl.col("user_id") < f"user-{KNOWN_USERS:05d}"),
        "items.parquet": items.sort("item_id"),
        "users.parquet": pl.concat([histories, odd_users]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        publish_file(folder / name, table.write_parquet)
    publish_file(folder / "pipeline.toml", lambda file: file.write(CONFIG.encode()))


def _draw_items(rng: np.random.Generator) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """The catalogue, category after category, and each item's popularity within its category (they sum to 1 there)."""
    titles, categories, popularities = [], [], []
    for category, words in CATEGORIES.items():
        kinds, things = (column.split(",") for column in words)
        every_title = [f"{kind} {thing} ({category})" for kind in kinds for thing in things]
        n_items = int(rng.integers(180, 250))
        titles += [every_title[at] for at in rng.permutation(len(every_title))[:n_items]]
        categories += [category] * n_items
        long_tail = 1 / np.arange(5, 5 + n_items)
        popularities.append(long_tail / long_tail.sum())
    ids = [f"item-{number:05d}" for number in rng.permutation(len(titles))]
    return pl.DataFrame({"item_id": ids, "title": titles, "category": categories}), np.concatenate(popularities)


def _draw_interactions(
    rng: np.random.Generator, items: pl.DataFrame, popularity_I: NDArray[np.float64]
) -> pl.DataFrame:
    """Known and new users' interactions, oldest first."""
    n_users, n_categories = KNOWN_USERS + NEW_USERS, len(CATEGORIES)
    lengths_U = np.clip(rng.lognormal(np.log(30), 0.5, n_users), 10, 150).astype(np.int64)
    user_N = np.repeat(np.arange(n_users), lengths_U)
    intended_UG = rng.permuted(np.tile(np.arange(n_categories), (n_users, 1)), axis=1)
    n_intended_U = rng.integers(1, 4, n_users)
    category_N = intended_UG[user_N, rng.integers(0, n_intended_U[user_N])]
    category_N = np.where(rng.random(len(user_N)) < NOISE, rng.integers(0, n_categories, len(user_N)), category_N)
    # Category g fills (g, g + 1] of the running sum, so one search draws an item by popularity within its category.
    item_N = np.searchsorted(popularity_I.cumsum(), category_N + rng.random(len(user_N)))
    return (
        pl.DataFrame(
            {
                "user_id": [f"user-{user:05d}" for user in user_N],
                "item_id": items["item_id"].gather(item_N),
                "timestamp": rng.integers(FIRST_SECOND, LAST_SECOND, len(user_N)),
            }
        )
        .sort("timestamp", "user_id", "item_id")
        .unique(["user_id", "item_id"], keep="first", maintain_order=True)
    )
