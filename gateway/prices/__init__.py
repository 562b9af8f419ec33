"""What tokens cost."""

from gateway.prices.book import PriceBook, PriceList, Quote
from gateway.prices.catalogue import Catalogue
from gateway.prices.price import MTOK, Price

__all__ = ["MTOK", "Catalogue", "Price", "PriceBook", "PriceList", "Quote"]
