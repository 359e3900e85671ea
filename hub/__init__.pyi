from .callback import PushToHub as PushToHub
from .checkpoint import read as read
from .checkpoint import save as save
from .errors import HubError as HubError
from .remote import pull as pull
from .remote import push as push
