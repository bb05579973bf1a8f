import com.hivemq.embedded.EmbeddedExtension;
import com.hivemq.embedded.EmbeddedHiveMQ;
import com.hivemq.extension.sdk.api.ExtensionMain;
import com.hivemq.extension.sdk.api.auth.SimpleAuthenticator;
import com.hivemq.extension.sdk.api.auth.parameter.SimpleAuthInput;
import com.hivemq.extension.sdk.api.auth.parameter.SimpleAuthOutput;
import com.hivemq.extension.sdk.api.auth.parameter.TopicPermission.MqttActivity;
import com.hivemq.extension.sdk.api.client.parameter.ClientTlsInformation;
import com.hivemq.extension.sdk.api.packets.auth.DefaultAuthorizationBehaviour;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartOutput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopOutput;
import com.hivemq.extension.sdk.api.services.Services;
import com.hivemq.extension.sdk.api.services.builder.Builders;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Base64;
import java.util.List;
import java.util.Optional;

/**
 * HiveMQ CE with the accounts and rules of a folder: config.xml, PEM files, and rules, a line
 * "USER read|write|readwrite FILTER" each. A certificate tells who a client is by its common
 * name; without one it is the user name, with the password of the file member.password.
 */
public final class Broker implements ExtensionMain, SimpleAuthenticator {
  private static final String STORE_PASSWORD = "changeit";

  private final Path dir;
  private final String password;
  private final List<String> rules;

  private Broker(Path dir) throws Exception {
    this.dir = dir;
    password = Files.readString(dir.resolve("member.password")).strip();
    rules = Files.readAllLines(dir.resolve("rules"));
  }

  public static void main(String[] args) throws Exception {
    Broker b = new Broker(Path.of(args[0]));
    b.stores();
    EmbeddedExtension extension = EmbeddedExtension.builder()
        .withId("rules").withName("rules").withVersion("1").withAuthor("groupgate").withPriority(1).withStartPriority(1)
        .withExtensionMain(b).build();
    EmbeddedHiveMQ.builder()
        .withConfigurationFolder(b.folder("conf")).withDataFolder(b.folder("data")).withExtensionsFolder(b.folder("extensions"))
        .withEmbeddedExtension(extension).build()
        .start().join();
    Thread.currentThread().join(); // until it is killed
  }

  private Path folder(String name) throws Exception { return Files.createDirectories(dir.resolve(name)); }

  /** stores makes the key stores that HiveMQ reads of PEM files. */
  private void stores() throws Exception {
    String pem = Files.readString(dir.resolve("server.key")).replaceAll("-----[A-Z ]+-----|\\s", "");
    KeyStore own = KeyStore.getInstance("JKS");
    own.load(null, null);
    own.setKeyEntry("server", KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem))),
        STORE_PASSWORD.toCharArray(), new Certificate[] {certificate("server.pem")});
    save(own, "server.jks");
    KeyStore trusted = KeyStore.getInstance("JKS");
    trusted.load(null, null);
    trusted.setCertificateEntry("ca", certificate("ca.pem"));
    save(trusted, "ca.jks");
  }

  private Certificate certificate(String name) throws Exception {
    try (InputStream in = Files.newInputStream(dir.resolve(name))) {
      return CertificateFactory.getInstance("X.509").generateCertificate(in);
    }
  }

  private void save(KeyStore store, String name) throws Exception {
    try (OutputStream out = Files.newOutputStream(dir.resolve(name))) {
      store.store(out, STORE_PASSWORD.toCharArray());
    }
  }

  @Override
  public void extensionStart(ExtensionStartInput in, ExtensionStartOutput out) {
    Services.securityRegistry().setAuthenticatorProvider(i -> this);
  }

  @Override
  public void extensionStop(ExtensionStopInput in, ExtensionStopOutput out) {}

  @Override
  public void onConnect(SimpleAuthInput in, SimpleAuthOutput out) {
    Optional<String> user = in.getConnectionInformation().getClientTlsInformation()
        .flatMap(ClientTlsInformation::getClientCertificate)
        .map(c -> c.getSubjectX500Principal().getName().replaceFirst("^CN=", ""))
        .or(() -> in.getConnectPacket().getPassword()
            .filter(p -> StandardCharsets.UTF_8.decode(p.duplicate()).toString().equals(password))
            .flatMap(p -> in.getConnectPacket().getUserName()));
    if (user.isEmpty()) {
      out.failAuthentication();
      return;
    }
    for (String line : rules) {
      String[] r = line.split(" ");
      if (!r[0].equals(user.get())) {
        continue;
      }
      MqttActivity may = switch (r[1]) {
        case "read" -> MqttActivity.SUBSCRIBE;
        case "write" -> MqttActivity.PUBLISH;
        default -> MqttActivity.ALL;
      };
      out.getDefaultPermissions().add(Builders.topicPermission().topicFilter(r[2]).activity(may).build());
    }
    out.getDefaultPermissions().setDefaultBehaviour(DefaultAuthorizationBehaviour.DENY);
    out.authenticateSuccessfully();
  }
}
